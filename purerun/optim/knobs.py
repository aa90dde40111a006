"""Which options of a torch optimizer are hyper-parameters: numbers that can be leaves of the state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

_CONTINUOUS = frozenset(
    {"lr", "momentum", "dampening", "weight_decay", "lr_decay", "momentum_decay", "eps", "alpha", "rho", "d"}
)
"""What torch lets users give as 0 or 1 and means as 0.0 or 1.0; other ints (max_iter, history_size) count things."""


@attrs.frozen
class Knob:
    """One hyper-parameter of a torch optimizer.

    Attributes:
        name: its name as a leaf of the state.
        base: its value.
        key: its key in a parameter group.
        place: where it stands in the tuple of that key; None if it is alone.
    """

    name: str
    base: float
    key: str
    place: int | None = None


def knobs(defaults: Mapping[str, Any], without: frozenset[str] = frozenset()) -> tuple[Knob, ...]:
    """List the hyper-parameters among an optimizer's defaults.

    Args:
        defaults: `optimizer.defaults`.
        without: keys that the optimizer changes itself.

    >>> [knob.name for knob in knobs({"lr": 1, "betas": (0.9, 0.999), "eps": (None, 1e-3), "max_iter": 20})]
    ['lr', 'beta1', 'beta2', 'eps2']
    """
    found = [knob for key, value in defaults.items() if key not in without for knob in _of(key, value)]
    names = [knob.name for knob in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"expected options with names of their own, got two that would both be called {twice}")
    return tuple(found)


def turned(found: Sequence[Knob], defaults: Mapping[str, Any], hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Make the entries of a parameter group that say these hyper-parameters.

    >>> defaults = {"lr": 0.1, "betas": (0.9, 0.999)}
    >>> turned(knobs(defaults), defaults, {"lr": 0.2, "beta1": 0.8, "beta2": 0.999})
    {'lr': 0.2, 'betas': (0.8, 0.999)}
    """
    values: dict[str, Any] = {}
    for knob in found:
        if knob.place is None:
            values[knob.key] = hyper[knob.name]
        else:
            values.setdefault(knob.key, list(defaults[knob.key]))[knob.place] = hyper[knob.name]
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _of(key: str, value: Any) -> Iterator[Knob]:
    if isinstance(value, float) or (type(value) is int and key in _CONTINUOUS):
        yield Knob(key, float(value), key)
    if not isinstance(value, list | tuple) or not any(isinstance(item, float) for item in value):
        return
    stem = key if key == "eps" else key.removesuffix("s")
    for place, item in enumerate(value):
        if type(item) in (int, float):
            yield Knob(f"{stem}{place + 1}", float(item), key, place)
