"""The laws of metrics, as checks for metrics of your own.

Each check takes a metric and batches of it, as pairs `(output, batch)`, and raises
`LawBroken`, which names the law and the entry in which it showed.  `tolerance` is how far
scores may be apart, relatively and absolutely: 0 asks for equality.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from purerun import batch as _batch
from purerun.metrics import Metric, Tally
from purerun.testing.broken import LawBroken

Batches: TypeAlias = Sequence[tuple[Any, Any]]
"""What a metric is fed: (output, batch), one pair an update."""

Law: TypeAlias = Callable[[Metric, Batches, float], None]
"""One check."""


def check_metric(
    metric: Metric, batches: Batches, *, tolerance: float = 0.0, ordered: bool = False, grows: bool = False
) -> None:
    """Check all laws of a metric.

    Args:
        metric: the metric.
        batches: at least three, of different sizes, so that a mean of means shows.
        tolerance: how far the scores of different groupings may be apart.
        ordered: the score depends on the order and the cut of the batches, as that of `Last` does.
        grows: the tally grows with the data, as a list of all predictions does.

    >>> from purerun.metrics import Accuracy
    >>> batches = [(torch.rand(size, 4), (None, torch.randint(4, (size,)))) for size in (3, 5, 2)]
    >>> check_metric(Accuracy(), batches)

    Raises:
        LawBroken: a law does not hold.
        ValueError: there are too few batches to tell.
    """
    if len(batches) < 3:
        raise ValueError(f"expected at least 3 batches to check a metric, got {len(batches)}; cut them smaller")
    for law in laws(ordered=ordered, grows=grows):
        law(metric, batches, tolerance)


def laws(*, ordered: bool = False, grows: bool = False) -> tuple[Law, ...]:
    """List the checks that `check_metric` makes, each called with metric, batches and tolerance."""
    always = (check_purity, check_memory, check_identity, check_associativity, check_split, check_reduce)
    return (*always, *(() if grows else (check_constancy,)), *(() if ordered else (check_order, check_grouping)))


def check_purity(metric: Metric, batches: Batches, _tolerance: float = 0.0) -> None:
    """No method changes what it is given, and a tally that is kept stays as it is: exactly, at any tolerance."""
    given = _cloned(batches)
    tallies = [metric.init()]
    copies = [_cloned(tallies[0])]
    for output, batch in batches:
        tallies.append(metric.update(tallies[-1], output, batch))
        _require_tally("purity", tallies[-1])
        copies.append(_cloned(tallies[-1]))
        metric.compute(tallies[-1])
        metric.merge(tallies[-1], tallies[0])
        metric.reduce(tallies)
    for kept, as_made in zip(tallies, copies, strict=True):
        _same("purity", "a method changed a tally that it was given", kept, as_made)
    for number, (now, then) in enumerate(zip(batches, given, strict=True)):
        _same("purity", f"update changed batch {number}", _leaves(now), _leaves(then))


def check_memory(metric: Metric, batches: Batches, _tolerance: float = 0.0) -> None:
    """A metric remembers nothing but its tally: the same call gives the same, whatever was called between.

    Exactly, at any tolerance.
    """
    start = metric.init()
    first = metric.update(start, *batches[0])
    then = _cloned((start, first, _scores(metric.compute(first))))
    metric.compute(run(metric, batches[1:]))
    again = metric.update(metric.init(), *batches[0])
    _same("memory", "init gave something else later", metric.init(), then[0])
    _same("memory", "the same update gave something else later", again, then[1])
    _same("memory", "the same compute gave something else later", metric.compute(first), then[2])


def check_constancy(metric: Metric, batches: Batches, _tolerance: float = 0.0) -> None:
    """The tally has the same keys, shapes and dtypes from `init` on."""
    start, tally = _forms(metric.init()), run(metric, batches[:2])
    others = {"update": tally, "merge": metric.merge(metric.init(), tally), "reduce": metric.reduce([tally, tally])}
    for method, other in others.items():
        found = _forms(other)
        for name in {**start, **found}:
            was, now = start.get(name, "absent"), found.get(name, "absent")
            if was != now:
                raise LawBroken("constancy", f"init made it {was}, {method} made it {now}", leaf=name)


def check_identity(metric: Metric, batches: Batches, tolerance: float = 0.0) -> None:
    """Merging with the tally of no batch changes nothing."""
    tally = run(metric, batches[:2])
    wanted = metric.compute(tally)
    merged = {
        "merge(init, tally)": metric.merge(metric.init(), tally),
        "merge(tally, init)": metric.merge(tally, metric.init()),
        "reduce([init, tally, init])": metric.reduce([metric.init(), tally, metric.init()]),
    }
    for what, other in merged.items():
        _near("identity", f"{what} scores differently", metric.compute(other), wanted, tolerance)


def check_associativity(metric: Metric, batches: Batches, tolerance: float = 0.0) -> None:
    """It does not matter which merge of three stretches is made first."""
    cuts = len(batches) // 3, 2 * len(batches) // 3
    a, b, c = (run(metric, stretch) for stretch in _stretches(batches, cuts))
    left = metric.compute(metric.merge(metric.merge(a, b), c))
    right = metric.compute(metric.merge(a, metric.merge(b, c)))
    _near("associativity", "merge(merge(a, b), c) is not merge(a, merge(b, c))", left, right, tolerance)


def check_split(metric: Metric, batches: Batches, tolerance: float = 0.0, cuts: Iterable[int] | None = None) -> None:
    """Stretches cut anywhere and merged are the whole.

    Args:
        metric: the metric.
        batches: the whole.
        tolerance: how far the scores may be apart.
        cuts: where to cut it, all at once; by default each single cut is tried.
    """
    whole = metric.compute(run(metric, batches))
    several = [[cut] for cut in range(len(batches) + 1)] if cuts is None else [sorted(cuts)]
    for each in several:
        merged = functools.reduce(metric.merge, (run(metric, stretch) for stretch in _stretches(batches, each)))
        _near(
            "split", f"merging the stretches cut at {each} is not the whole", metric.compute(merged), whole, tolerance
        )


def check_reduce(metric: Metric, batches: Batches, tolerance: float = 0.0) -> None:
    """Processes may be joined in groups, and one process alone is itself."""
    a, b, c = (run(metric, batches[number::3]) for number in range(3))
    _near("reduce", "reduce([a]) is not a", metric.compute(metric.reduce([a])), metric.compute(a), tolerance)
    together = metric.compute(metric.reduce([a, b, c]))
    grouped = metric.compute(metric.reduce([metric.reduce([a, b]), c]))
    _near("reduce", "reduce([reduce([a, b]), c]) is not reduce([a, b, c])", grouped, together, tolerance)


def check_order(metric: Metric, batches: Batches, tolerance: float = 0.0, owners: Sequence[int] | None = None) -> None:
    """Neither the order of the batches matters, nor which process saw which.

    Args:
        metric: the metric.
        batches: at least one.
        tolerance: how far the scores may be apart.
        owners: which process sees each batch; by default in turn, by three and an idle one.
    """
    whole = metric.compute(run(metric, batches))
    backwards = metric.compute(run(metric, batches[::-1]))
    _near("order", "the batches from last to first score differently", backwards, whole, tolerance)
    owners = [number % 3 for number in range(len(batches))] if owners is None else owners
    shares = [
        [pair for pair, owner in zip(batches, owners, strict=True) if owner == rank] for rank in range(max(owners) + 2)
    ]
    reduced = metric.compute(metric.reduce([run(metric, share) for share in shares]))
    _near("order", f"batches seen by the processes {list(owners)} score differently", reduced, whole, tolerance)


def check_grouping(metric: Metric, batches: Batches, tolerance: float = 0.0) -> None:
    """A sample counts the same in a large batch as in a small one: two batches, or one that joins them."""
    joined = [_concatenated(a, b) for a, b in zip(batches[::2], batches[1::2], strict=False)]
    apart = metric.compute(run(metric, batches[: 2 * len(joined)]))
    message = "two batches joined into one score differently (a mean of means?)"
    _near("grouping", message, metric.compute(run(metric, joined)), apart, tolerance)


def run(metric: Metric, batches: Iterable[tuple[Any, Any]]) -> Tally:
    """Make the tally of some batches, from none."""
    tally = metric.init()
    for output, batch in batches:
        tally = metric.update(tally, output, batch)
    return tally


def _stretches(batches: Batches, cuts: Sequence[int]) -> list[Batches]:
    bounds = [0, *cuts, len(batches)]
    return [batches[start:end] for start, end in itertools.pairwise(bounds)]


def _concatenated(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return torch.cat([a, b])
    if isinstance(a, Mapping):
        return {key: _concatenated(a[key], b[key]) for key in a}
    if isinstance(a, list) and not any(isinstance(item, Tensor | Mapping | list | tuple) for item in a):
        return a + b
    if isinstance(a, list | tuple):
        return tuple(_concatenated(left, right) for left, right in zip(a, b, strict=True))
    return a


def _cloned(value: Any) -> Any:
    return copy.deepcopy(value)


def _leaves(value: Any) -> dict[str, Tensor]:
    return {str(number): leaf for number, leaf in enumerate(_batch.leaves(value))}


def _forms(tally: Tally) -> dict[str, str]:
    return {name: f"{value.dtype} {list(value.shape)}" for name, value in tally.items()}


def _scores(score: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return score if isinstance(score, Mapping) else {"score": score}


def _require_tally(law: str, tally: Any) -> None:
    if type(tally) is not dict:
        raise LawBroken(law, f"expected a dict of tensors as tally, got {type(tally).__name__}")
    for name, value in tally.items():
        if not isinstance(value, Tensor):
            raise LawBroken(law, f"expected a tally of tensors, got {type(value).__name__}", leaf=str(name))


def _same(law: str, message: str, found: Any, wanted: Any) -> None:
    _near(law, message, found, wanted, 0.0)


def _near(law: str, message: str, found: Any, wanted: Any, tolerance: float) -> None:
    left, right = _scores(found), _scores(wanted)
    if set(left) != set(right):
        raise LawBroken(law, f"{message}: entries {sorted(left)} against {sorted(right)}")
    for name, value in left.items():
        if not _close(value, right[name], tolerance):
            raise LawBroken(law, f"{message}: {_shown(value)} against {_shown(right[name])}", leaf=name)


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def _shown(value: Tensor) -> str:
    return repr(value.tolist()) if value.numel() <= 8 else f"a tensor {list(value.shape)}"
