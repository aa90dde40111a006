"""Examining metrics: is the score of the whole that of its merged parts, and does it hang on the tally alone?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from purerun import batch as _batch
from purerun.data.nest import cut
from purerun.doctor.effects import returned, written
from purerun.doctor.experiment import experiment
from purerun.doctor.finding import MONOID, PURE, Finding, found
from purerun.doctor.lines import Line, own_beginning
from purerun.doctor.looks import inside
from purerun.doctor.patient import Patient
from purerun.doctor.verdicts import to_blame, verdicts
from purerun.metrics import Last, Metric, Torchmetrics
from purerun.testing import LawBroken
from purerun.testing import metrics as laws

# How the samples are cut into batches: of several sizes, so that a mean of means shows.
_SIZES = (3, 5, 2, 4, 6)
_PIECES = 8
FEWEST = 3

# Sums of floats that are grouped otherwise round otherwise.
_TOLERANCE = 1e-5

_MERGE = "let `merge` use both tallies, entry by entry: return purerun.metrics.metric.added(a, b) where all are sums"


def fed(patient: Patient) -> laws.Batches:
    """Make what the metrics are fed: small batches of several sizes, with the model's own outputs."""
    pieces = [piece for batch in patient.judged for piece in _cut(batch)][:_PIECES]
    return [(patient.judge(piece), _batch.move(piece, patient.step.device)) for piece in pieces]


def _cut(batch: Any) -> Iterator[Any]:
    start, whole = 0, _batch.size(batch)
    try:
        for size in cycle(_SIZES):
            if start >= whole:
                return
            yield cut(batch, start, min(start + size, whole))
            start += size
    except (ValueError, TypeError):  # a batch that cannot be cut
        yield batch


def examine_metric(part: str, metric: Metric, batches: laws.Batches) -> Iterator[Finding]:
    """Examine one metric on the outputs of the model.

    Args:
        part: its path in the recipe.
        metric: the metric.
        batches: (output, batch), at least three.
    """
    evidence = experiment(lambda: _everything(metric, batches), [metric])
    causes = to_blame(evidence)
    yield from verdicts(part, "metric", causes, metric)
    writes = [*_writes(part, metric, batches)]
    yield from writes
    if not (causes or writes):
        yield from _merges(part, metric, batches) or _weaknesses(part, metric, batches)


def _everything(metric: Metric, batches: laws.Batches) -> Any:
    """Call every method, on a part and on the whole."""
    first, whole = laws.run(metric, batches[:1]), laws.run(metric, batches)
    merged = metric.merge(first, laws.run(metric, batches[1:]))
    return [metric.compute(each) for each in (first, whole, merged, metric.reduce([first, whole]))]


def _writes(part: str, metric: Metric, batches: laws.Batches) -> Iterator[Finding]:
    """Find the methods that change what they are given."""
    tally = laws.run(metric, batches[:2])
    calls: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "update": (lambda given: metric.update(given["tally"], given["output"], given["batch"]), batches[0]),
        "merge": (lambda given: metric.merge(given["tally"], given["other"]), None),
        "compute": (lambda given: metric.compute(given["tally"]), None),
        "reduce": (lambda given: metric.reduce([given["tally"], given["other"]]), None),
    }
    for method, (act, pair) in calls.items():
        given = {"tally": tally, "other": tally} | ({} if pair is None else {"output": pair[0], "batch": pair[1]})
        for path, line in written(act, given).items():
            message = f"`{method}` writes into the {path.removeprefix('batch/')} that it is given"
            line = line or own_beginning(getattr(type(metric), method), metric)
            yield found(part, PURE, message, line, "make a new tensor: a + b in place of a += b")


def _merges(part: str, metric: Metric, batches: laws.Batches) -> list[Finding]:
    """Merge parts, which must be the whole; of several laws that break, one fault is told."""
    for law in (laws.check_split, laws.check_associativity, laws.check_identity, laws.check_reduce):
        try:
            law(metric, batches, _TOLERANCE)
        except LawBroken as broken:
            return [_unmerged(part, metric, batches, broken.cause)]
    told = "" if type(metric).__module__.startswith("purerun.") else _lost(metric, batches)
    return [_unmerged(part, metric, batches, told)] if told else []


def _unmerged(part: str, metric: Metric, batches: laws.Batches, cause: str) -> Finding:
    nothing = metric.init()
    if inside(metric.merge(metric.init(), metric.init())) != inside(nothing):
        line = returned(metric.init, type(metric).init) or own_beginning(type(metric).init, metric)
        message = f"`init` is not the tally of nothing: {cause}"
        return found(part, MONOID, message, line, "begin with what merging leaves as it is: 0 for a sum")
    half = len(batches) // 2
    parts = laws.run(metric, batches[:half]), laws.run(metric, batches[half:])
    line = _return_of(metric, "merge", lambda: metric.merge(*parts))
    if type(metric).reduce is not Metric.reduce and line is None:
        line = _return_of(metric, "reduce", lambda: metric.reduce(list(parts)))
    return found(part, MONOID, f"`merge` forgets or distorts: {cause}", line, _MERGE)


def _return_of(metric: Metric, method: str, act: Callable[[], Any]) -> Line | None:
    function = getattr(type(metric), method)
    return returned(act, function) or own_beginning(function, metric)


def _lost(metric: Metric, batches: laws.Batches) -> str:
    """Compare tallies too: an untrained model may score the same on all parts."""
    half = len(batches) // 2
    whole = laws.run(metric, batches)
    merged = metric.merge(laws.run(metric, batches[:half]), laws.run(metric, batches[half:]))
    for name in whole:
        if not _near(whole[name], merged.get(name)):
            return f"the merged tally has another `{name}` than that of the whole"
    return ""


def _near(a: Tensor, b: Tensor | None) -> bool:
    if b is None or a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def _weaknesses(part: str, metric: Metric, batches: laws.Batches) -> Iterator[Finding]:
    """Say on what a score depends that is no fault in one process, and yet surprises."""
    if isinstance(metric, Last | Torchmetrics):
        return
    for law in (laws.check_order, laws.check_grouping):
        # Outputs that cannot be joined into a larger batch tell nothing.
        with suppress(ValueError, RuntimeError, TypeError, KeyError):
            try:
                law(metric, batches, _TOLERANCE)
            except LawBroken as broken:
                remedy = "count sums and weights, and divide in `compute`"
                line = own_beginning(type(metric).update, metric)
                yield found(part, MONOID, broken.cause, line, remedy, kind="note")
