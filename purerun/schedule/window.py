"""What every schedule has: a window of a counter, a hyper-parameter, and moves of its value.

A schedule is described by what happens to the current value inside its window.  `s` is the
schedule's own step there: 0 at the window's first counter value, `last` at its final one.  A move
is three numbers (keep, gain, add) and means `value <- keep * value + gain * base + add`.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

import attrs

from purerun import valid
from purerun.schedule.affine import IDENTITY, Affine

Move = tuple[float, float, float]

#: The `stop` of a window without an end.
FOREVER = sys.maxsize

#: Stands for a factor of exactly zero where the next step's factor is divided by it, so that the
#: quotient of the two is the limit from above.  Far from both ends of a double's range.
TINY = 1e-100

#: Marks the fields that count steps of the schedule's unit: `by_iter` multiplies them.
STEPS = {"counts": "steps"}


def _check_end(owner: Schedule, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and not (valid.is_whole(value) and value > owner.begin):
        raise valid.refuse(owner, "end", f"None or a whole number greater than begin={owner.begin}", value)


def _check_param(owner: Schedule, attribute: attrs.Attribute[Any], value: str) -> None:
    if not isinstance(value, str) or not value:
        raise valid.refuse(owner, "param", "the name of a hyper-parameter", value)


@attrs.frozen
class Schedule(ABC):
    """A hyper-parameter as a function of progress: what all members of the family share.

    Args:
        begin: the first counter value (finished epochs or iterations) at which the schedule acts.
        end: the first one at which it no longer does; from there the value holds.  None: never.
        by: which counter is meant, "epoch" or "iter".
        param: the hyper-parameter: "lr", "momentum", "weight_decay", "beta1", ...

    Raises:
        ValueError: a number is outside its range.
    """

    begin: int = attrs.field(default=0, kw_only=True, validator=valid.whole(0), metadata=STEPS)
    end: int | None = attrs.field(default=None, kw_only=True, validator=_check_end, metadata=STEPS)
    by: Literal["epoch", "iter"] = attrs.field(default="epoch", kw_only=True, validator=valid.one_of("epoch", "iter"))
    param: str = attrs.field(default="lr", kw_only=True, validator=_check_param)

    @abstractmethod
    def move(self, since: int, now: int) -> Move:
        """Return what the own steps `since + 1` to `now` do to the value, in closed form.

        `since` is -1 (the window's beginning) or a step; `since < now <= last`.
        """

    @property
    @abstractmethod
    def scales(self) -> bool:
        """Whether every move is a mere multiplication, so that it commutes with others of its like."""

    @property
    def stop(self) -> int:
        """The counter value at which the window ends, a huge one if it never does."""
        return FOREVER if self.end is None else self.end

    @property
    def last(self) -> int:
        """The own step of the window's last counter value."""
        return self.stop - self.begin - 1

    def at(self, step: int) -> Affine:
        """Return the map of this schedule alone when its counter is `step`; the cost does not depend on `step`.

        >>> from purerun.schedule import Exponential
        >>> Exponential(0.5, begin=2, end=5).at(3)
        Affine(scale=0.5, shift=0.0)
        >>> [Exponential(0.5, begin=2, end=5).at(step).scale for step in range(7)]
        [1.0, 1.0, 1.0, 0.5, 0.25, 0.25, 0.25]
        """
        if step < self.begin:
            return IDENTITY
        keep, gain, add = self.move(-1, min(step - self.begin, self.last))
        return Affine(keep + gain, add)

    def by_iter(self, epoch_length: int) -> Self:
        """Return this schedule counted in iterations: every number of epochs times `epoch_length`.

        Rates per step (`gamma`) stay, as with MMEngine's `convert_to_iter_based`: an exponential decay
        then happens at each iteration.  A schedule by iteration is returned as it is.

        >>> from purerun.schedule import MultiStep
        >>> MultiStep([8, 11], end=12).by_iter(100)
        MultiStep(begin=0, end=1200, by='iter', param='lr', milestones=(800, 1100), gamma=0.1)
        """
        if not valid.is_whole(epoch_length) or epoch_length < 1:
            raise valid.refuse(self, "epoch_length", "a whole number of at least 1", epoch_length)
        if self.by == "iter":
            return self
        counts = [field.name for field in attrs.fields(type(self)) if field.metadata == STEPS]
        longer = {name: _times(getattr(self, name), epoch_length) for name in counts}
        return attrs.evolve(self, by="iter", **longer)


def _times(count: int | tuple[int, ...] | None, epoch_length: int) -> int | tuple[int, ...] | None:
    if isinstance(count, tuple):
        return tuple(entry * epoch_length for entry in count)
    return None if count is None else count * epoch_length


def quotient(shape: Callable[[int], float], since: int, now: int) -> float:
    """Return by what a value that follows `shape` is multiplied from own step `since` to `now`."""
    if since < 0:
        return shape(now)
    return (shape(now) or TINY) / (shape(since) or TINY)


def need_end(owner: Schedule) -> None:
    """Raise ValueError for a schedule whose shape needs its window's end, if it has none."""
    if owner.end is None:
        raise valid.refuse(owner, "end", "given, because it sets how fast the value changes", None)


def _check_period(owner: Schedule, attribute: attrs.Attribute[Any], value: int | None) -> None:
    if value is None and owner.end is None:
        raise valid.refuse(owner, attribute.name, "given where there is no `end`", value)
    if value is not None:
        valid.whole(1)(owner, attribute, value)


def period_field() -> Any:
    """Make the field of a length in steps, by default the window's."""
    return attrs.field(default=None, kw_only=True, validator=_check_period, metadata=STEPS)


def span(owner: Schedule, period: int | None) -> int:
    """Return the period, or the window's length where none was given."""
    return owner.stop - owner.begin if period is None else period


def as_tuple(values: Any) -> Any:
    """Make a tuple of a list; leave what is neither to the validator."""
    return tuple(values) if isinstance(values, list | range) else values


def _cos(start: float, stop: float, done: float) -> float:
    return stop + (start - stop) * math.cos(math.pi / 2 * done) ** 2


def _linear(start: float, stop: float, done: float) -> float:
    return start + (stop - start) * done


#: The ways to go from one number to another: (start, stop, the part done, 0 to 1).
ANNEAL: Mapping[str, Callable[[float, float, float], float]] = MappingProxyType({"cos": _cos, "linear": _linear})


def anneal_field() -> Any:
    """Make the field that names one of those ways."""
    return attrs.field(default="cos", kw_only=True, validator=valid.one_of(*ANNEAL))
