"""The laws of metrics, as checks for metrics of your own.

Each check takes a metric and batches of it, as pairs `(output, batch)`, and raises an
AssertionError that names the law and the entry that breaks it.  `tolerance` is how far
scores may be apart, relatively and absolutely: 0 asks for equality.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from purerun import batch as _batch
from purerun.metrics import Metric, Tally

Batches: TypeAlias = Sequence[tuple[Any, Any]]
"""What a metric is fed: (output, batch), one pair an update."""


def check_metric(
    metric: Metric, batches: Batches, *, tolerance: float = 0.0, ordered: bool = False, grows: bool = False
) -> None:
    """Check all laws of a metric.

    Args:
        metric: the metric.
        batches: at least three.
        tolerance: how far the scores of different groupings may be apart.
        ordered: the metric depends on the order and the cut of the batches, as `Last` does.
        grows: the tally grows with the data, as a list of all predictions does.

    >>> from purerun.metrics import Accuracy
    >>> scores, labels = torch.rand(3, 8, 4), torch.randint(4, (3, 8))
    >>> check_metric(Accuracy(), [(s, (None, l)) for s, l in zip(scores, labels)])

    Raises:
        AssertionError: a law is broken.
    """
    if len(batches) < 3:
        raise ValueError(f"expected at least 3 batches to check a metric, got {len(batches)}")
    check_purity(metric, batches)
    check_memory(metric, batches)
    check_identity(metric, batches)
    check_associativity(metric, batches, tolerance)
    check_split(metric, batches, tolerance)
    check_reduce(metric, batches, tolerance)
    if not grows:
        check_constancy(metric, batches)
    if not ordered:
        check_order(metric, batches, tolerance)
        check_grouping(metric, batches, tolerance)


def check_purity(metric: Metric, batches: Batches) -> None:
    """No method changes what it is given, and a tally that is kept stays as it is."""
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


def check_memory(metric: Metric, batches: Batches) -> None:
    """A metric remembers nothing but its tally: the same call gives the same, whatever was called between."""
    first = metric.update(metric.init(), *batches[0])
    before, as_made = metric.compute(first), _cloned(first)
    elsewhere = run(metric, batches[1:])
    metric.compute(elsewhere)
    _same("memory", "a second init differs", metric.init(), copy.deepcopy(metric).init())
    _same("memory", "the same update gave something else later", metric.update(metric.init(), *batches[0]), as_made)
    _same("memory", "the same compute gave something else later", _scores(metric.compute(first)), _scores(before))


def check_constancy(metric: Metric, batches: Batches) -> None:
    """The tally has the same keys, shapes and dtypes from `init` on."""
    start = _forms(metric.init())
    tally = run(metric, batches[:2])
    others = {"update": tally, "merge": metric.merge(metric.init(), tally), "reduce": metric.reduce([tally, tally])}
    for method, other in others.items():
        for name in {**start, **_forms(other)}:
            was, now = start.get(name, "absent"), _forms(other).get(name, "absent")
            _require(was == now, "constancy", f"{method} turned the entry {name!r} from {was} into {now}")


def check_identity(metric: Metric, batches: Batches) -> None:
    """Merging with the tally of no batch changes nothing."""
    tally = run(metric, batches[:2])
    wanted = _scores(metric.compute(tally))
    merged = {
        "merge(init, tally)": metric.merge(metric.init(), tally),
        "merge(tally, init)": metric.merge(tally, metric.init()),
        "reduce([init, tally, init])": metric.reduce([metric.init(), tally, metric.init()]),
    }
    for what, other in merged.items():
        _same("identity", f"{what} scores differently", _scores(metric.compute(other)), wanted)


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
        _near("split", f"merging the stretches cut at {each} is not the whole", metric.compute(merged), whole, tolerance)


def check_reduce(metric: Metric, batches: Batches, tolerance: float = 0.0) -> None:
    """Processes may be joined in groups, and one process alone is itself."""
    a, b, c = (run(metric, batches[number::3]) for number in range(3))
    alone = _scores(metric.compute(metric.reduce([a])))
    _same("reduce", "reduce([a]) is not a", alone, _scores(metric.compute(a)))
    together = metric.compute(metric.reduce([a, b, c]))
    grouped = metric.compute(metric.reduce([metric.reduce([a, b]), c]))
    _near("reduce", "reduce([reduce([a, b]), c]) is not reduce([a, b, c])", grouped, together, tolerance)


def check_order(
    metric: Metric, batches: Batches, tolerance: float = 0.0, owners: Sequence[int] | None = None
) -> None:
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
    shares = [[pair for pair, owner in zip(batches, owners, strict=True) if owner == rank] for rank in range(max(owners) + 2)]
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
    return [batches[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


def _concatenated(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return torch.cat([a, b])
    if isinstance(a, Mapping):
        return {key: _concatenated(a[key], b[key]) for key in a}
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
    _require(type(tally) is dict, law, f"expected a dict of tensors as tally, got {type(tally).__name__}")
    for name, value in tally.items():
        _require(isinstance(value, Tensor), law, f"expected a tensor as {name!r} of the tally, got {type(value).__name__}")


def _same(law: str, message: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    _near(law, message, found, wanted, 0.0)


def _near(law: str, message: str, found: Any, wanted: Any, tolerance: float) -> None:
    left, right = _scores(found), _scores(wanted)
    _require(set(left) == set(right), law, f"{message}: entries {sorted(left)} against {sorted(right)}")
    for name in left:
        a, b = left[name], right[name]
        fits = a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
        _require(fits, law, f"{message}: {name!r} is {_shown(a)} against {_shown(b)}")


def _shown(value: Tensor) -> str:
    return repr(value.tolist()) if value.numel() <= 8 else f"a tensor {list(value.shape)}"


def _require(holds: bool, law: str, message: str) -> None:
    if not holds:
        raise AssertionError(f"{law}: {message}")


LAWS: tuple[Callable[..., None], ...] = ()
