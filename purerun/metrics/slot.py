"""The states of a torchmetrics metric as entries of a tally: how they go in, come out and join."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import attrs
import torch
from torch import Tensor

from purerun.metrics.metric import Tally
from purerun.metrics.scratch import inside

if TYPE_CHECKING:
    import torchmetrics

Rule: TypeAlias = Literal["sum", "mean", "max", "min", "cat", "stack"] | Callable[[Tensor], Tensor]
"""How the values of a state in several processes become one: torchmetrics' `dist_reduce_fx`."""

COUNT = "update_count"
"""The entry that counts updates: the weight of a state that is joined by its mean."""


@attrs.frozen
class Slot:
    """One state of a metric, or of a metric inside it.

    Attributes:
        name: its entry in the tally: the path of the metric inside, a dot, the attribute.
        path: where the metric that owns it is, "" for the outermost.
        attribute: its name there.
        default: its value before the first update; None for a list, which starts empty.
        rule: how it joins.
    """

    name: str
    path: str
    attribute: str
    default: Tensor | None
    rule: Rule


def slots(metric: torchmetrics.Metric) -> tuple[Slot, ...]:
    """List the states of a metric and of the metrics inside it.

    >>> from torchmetrics import MeanMetric
    >>> [(slot.name, slot.rule) for slot in slots(MeanMetric())]
    [('mean_value', 'sum'), ('weight', 'sum')]
    """
    # A wrapper may show the states of the metric it wraps as its own; the inner one comes later and wins.
    owners = {id(each._defaults): (path, each) for path, each in inside(metric)}
    return tuple(slot for path, owner in owners.values() for slot in _slots(path, owner))


def _slots(path: str, metric: torchmetrics.Metric) -> Iterator[Slot]:
    # torchmetrics has no public door to the defaults and the reductions of its states.
    for attribute, default in metric._defaults.items():
        rule = _rule(metric._reductions[attribute])
        if isinstance(default, list) and rule not in ("cat", "stack"):
            raise TypeError(
                f"expected dist_reduce_fx='cat' or None for the list state {attribute!r} of {type(metric).__name__}, "
                f"got {rule!r}; such lists cannot be joined"
            )
        name = f"{path}.{attribute}" if path else attribute
        yield Slot(name, path, attribute, default if isinstance(default, Tensor) else None, rule)


def _rule(reduction: Callable[[Any], Any] | str | None) -> Rule:
    from torchmetrics.utilities import data

    known: dict[Any, Rule] = {
        None: "stack",
        data.dim_zero_sum: "sum",
        data.dim_zero_mean: "mean",
        data.dim_zero_max: "max",
        data.dim_zero_min: "min",
        data.dim_zero_cat: "cat",
    }
    return known.get(reduction, cast("Rule", reduction))


def empty(states: Iterable[Slot], device: torch.device) -> Tally:
    """Make the tally of no update."""
    tally = {COUNT: torch.zeros((), dtype=torch.int64, device=device)}
    for slot in states:
        if slot.default is not None:
            value = slot.default.detach().to(device)
            tally[slot.name] = value[None][:0].clone() if slot.rule == "stack" else value.clone()
    return tally


def fill(metric: torchmetrics.Metric, states: Iterable[Slot], tally: Tally, *, whole: bool) -> None:
    """Put a tally into a metric.

    Args:
        metric: written to.
        states: its slots.
        tally: copied, as metrics add in place.
        whole: to compute from all that was joined, rather than to go on with the last stretch.
    """
    lists = _lists(states, tally)
    for slot in states:
        if slot.default is None:
            value: Tensor | list[Tensor] = lists[slot.name]
        elif slot.rule == "stack":
            parts = tally[slot.name]
            value = parts.clone() if whole and len(parts) > 1 else (parts[-1] if len(parts) else slot.default).clone()
        else:
            value = tally[slot.name].clone()
        setattr(metric.get_submodule(slot.path), slot.attribute, value)


def drain(metric: torchmetrics.Metric, states: Iterable[Slot], before: Tally) -> Tally:
    """Make the tally of a metric that was filled with `before` and updated once."""
    lists = _lists(states, before)
    tally = {COUNT: before[COUNT] + 1}
    for slot in states:
        value = getattr(metric.get_submodule(slot.path), slot.attribute)
        if slot.default is None:
            tally |= _numbered(slot, _kept(value, lists[slot.name], slot))
        elif slot.rule == "stack":
            tally[slot.name] = _joined([before[slot.name][:-1], value.detach()[None]])
        else:
            tally[slot.name] = value.detach()
    return tally


def join(states: Iterable[Slot], tallies: Sequence[Tally]) -> Tally:
    """Join tallies of several stretches or processes, each state by its rule."""
    counts = [tally[COUNT] for tally in tallies]
    lists = [_lists(states, tally) for tally in tallies]
    joined = {COUNT: functools.reduce(torch.add, counts)}
    for slot in states:
        if slot.default is None:
            joined |= _numbered(slot, [piece for each in lists for piece in each[slot.name]])
        else:
            joined[slot.name] = _by_rule(slot.rule, [tally[slot.name] for tally in tallies], counts)
    return joined


def _by_rule(rule: Rule, values: list[Tensor], counts: list[Tensor]) -> Tensor:
    if rule == "mean":
        return functools.reduce(_mixed, zip(values, counts, strict=True))[0]
    if rule in ("cat", "stack"):
        return _joined(values)
    if callable(rule):
        return rule(torch.stack(values))
    return functools.reduce({"sum": torch.add, "max": torch.maximum, "min": torch.minimum}[rule], values)


def _mixed(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Average two values by the updates that they stand for; one of no update does not count."""
    total = a[1] + b[1]
    mean = (a[0] * a[1] + b[0] * b[1]) / total
    return torch.where(a[1] == 0, b[0], torch.where(b[1] == 0, a[0], mean)), total


def _joined(values: Iterable[Tensor]) -> Tensor:
    values = list(values)
    return torch.cat([value for value in values if len(value)] or values[:1])


def _lists(states: Iterable[Slot], tally: Tally) -> dict[str, list[Tensor]]:
    """Collect the elements of the list states: the entries `name.0`, `name.1`, ... of the tally."""
    lists: dict[str, list[Tensor]] = {slot.name: [] for slot in states if slot.default is None}
    if lists:
        for entry, value in tally.items():
            name, _, number = entry.rpartition(".")
            if number.isdigit() and name in lists:
                lists[name].append(value)
    return lists


def _numbered(slot: Slot, pieces: list[Tensor]) -> Tally:
    if slot.rule == "cat":
        pieces = _grown(pieces)
    return {f"{slot.name}.{number}": piece for number, piece in enumerate(pieces)}


def _grown(pieces: list[Tensor]) -> list[Tensor]:
    """Join neighbours until each piece is longer than the next: n updates copy a row about log n times."""
    grown: list[Tensor] = []
    for piece in pieces:
        grown.append(piece)
        while len(grown) > 1 and len(grown[-2]) <= len(grown[-1]):
            grown[-2:] = [torch.cat(grown[-2:])]
    return grown


def _kept(value: Any, old: list[Tensor], slot: Slot) -> list[Tensor]:
    """List the elements of a list state; the new ones as copies, for they may be the batch's own tensors."""
    elements = list(value) if isinstance(value, list | tuple) else [value]
    strange = [type(element).__name__ for element in elements if not isinstance(element, Tensor)]
    if strange:
        raise TypeError(
            f"expected tensors in the list state {slot.name!r}, got {strange[0]}; a tally holds tensors only"
        )
    known = set(map(id, old))
    fresh = [element if id(element) in known else element.detach().clone() for element in elements]
    return [element.reshape(1) if slot.rule == "cat" and not element.ndim else element for element in fresh]
