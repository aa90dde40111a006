"""The schedules that go down to a floor: polynomial, linear annealing, cosine, flat-cosine, cosine with restarts.

Each row of this table is a class with one formula, `shape(s)`: which part of the way between the floor `m`
and the value is left at own step `s`, so that alone `value = m + (base - m) * shape(s)`.  On a value that others
move as well, a step is MMEngine's: `value <- m + (value - m) * shape(s) / shape(s - 1)`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import attrs

from purerun import valid
from purerun.schedule.window import STEPS, Move, Schedule, as_tuple, need_end, period_field, quotient, span


def _check_ratio(owner: Floored, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and (not valid.is_number(value) or owner.floor != 0):
        raise valid.refuse(owner, attribute.name, f"None or a number, and None beside floor={owner.floor!r}", value)


@attrs.frozen
class Floored(Schedule):
    """A schedule that takes the value towards a floor.

    Args:
        floor: the floor as a value; MMEngine's `eta_min`, MMCV's `min_lr`.
        floor_ratio: the floor as a part of the base value instead; MMEngine's `eta_min_ratio`.
    """

    floor: float = attrs.field(default=0.0, kw_only=True, validator=valid.number(-math.inf))
    floor_ratio: float | None = attrs.field(default=None, kw_only=True, validator=_check_ratio)

    @abstractmethod
    def shape(self, s: int) -> float:
        """Return which part of the way is left at own step `s`."""

    def glide(self, keep: float, regain: float = 0.0) -> Move:
        """Return the move to `m + keep * (value - m) + regain * (base - m)`."""
        rest = 1 - keep - regain
        return keep, regain + rest * (self.floor_ratio or 0.0), rest * self.floor


class Gliding(Floored):
    """A floored schedule that goes its way once."""

    __slots__ = ()

    @property
    def scales(self) -> bool:
        """True if the floor is zero."""
        return self.floor == 0 and not self.floor_ratio

    def move(self, since: int, now: int) -> Move:
        """Return the part of the way by the quotient of the two shapes."""
        return self.glide(quotient(self.shape, since, now))


@attrs.frozen(cache_hash=True)
class Polynomial(Gliding):
    """Go down to the floor by `(1 - s / T) ** power`, T being the window's last step: MMEngine's `PolyLR`.

    MMCV 1.x divides by the number of steps instead: its `poly` over P steps is `end=P + 1`.

    >>> [Polynomial(2.0, end=5).at(step).scale for step in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """

    power: float = attrs.field(default=1.0, validator=valid.above(0))

    def __attrs_post_init__(self) -> None:
        need_end(self)

    def shape(self, s: int) -> float:
        """Return the power of the part of the window that is left."""
        return (1 - s / self.last) ** self.power if self.last else 1.0


@attrs.frozen(cache_hash=True)
class LinearAnnealing(Gliding):
    """Go down to the floor in a straight line, there after `period` steps: MMCV 1.x's `LinearAnnealing`.

    The period is by default the window's length, so that the floor itself would come one step after the end.

    >>> [LinearAnnealing(period=4).at(step).scale for step in range(6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    period: int | None = period_field()

    def shape(self, s: int) -> float:
        """Return the part of the period that is left."""
        return max(0.0, 1 - s / span(self, self.period))


@attrs.frozen(cache_hash=True)
class FlatCosine(Gliding):
    """Stay, then go down to the floor by half a cosine wave: MMCV 1.x's `FlatCosineAnnealing`.

    Args:
        start: the part of the period at which the way down starts; MMCV's `start_percent`.
        period: steps until the floor is reached; by default the window's length.

    >>> [round(FlatCosine(0.5, end=4).at(step).scale, 6) for step in range(4)]
    [1.0, 1.0, 1.0, 0.5]
    """

    start: float = attrs.field(default=0.75, validator=valid.number(0, 1))
    period: int | None = period_field()

    def shape(self, s: int) -> float:
        """Return 1, then the half wave over what is left of the period, then 0."""
        whole = span(self, self.period)
        first = round(whole * self.start)
        if s >= whole:
            return 0.0
        return half_wave(s - first, whole - first) if s > first else 1.0


@attrs.frozen(cache_hash=True)
class Cosine(Floored):
    """Go down to the floor by half a cosine wave, and up again after it: MMEngine's `CosineAnnealingLR`.

    Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017, without the restarts.

    Args:
        period: steps until the floor is reached, MMEngine's `T_max`; by default the window's length, so that
            the floor itself would come one step after the end.

    >>> [round(Cosine(period=4).at(step).scale, 6) for step in range(6)]
    [1.0, 0.853553, 0.5, 0.146447, 0.0, 0.146447]
    """

    period: int | None = period_field()

    @property
    def scales(self) -> bool:
        """True if the floor is zero and the window ends there: on the way up it adds parts of the base value."""
        return self.floor == 0 and not self.floor_ratio and self.last <= span(self, self.period)

    def shape(self, s: int) -> float:
        """Return the wave."""
        return half_wave(s, span(self, self.period))

    def move(self, since: int, now: int) -> Move:
        """Return the part of the way, which from the floor on is one up to the base value."""
        whole = span(self, self.period)
        if since < 0 and now <= whole:
            return self.glide(half_wave(now, whole))  # what nearly every call is: by the shortest way
        # The last time before `now` at which the value was at the floor.
        bottom = whole * ((now - 1 - whole) // (2 * whole) * 2 + 1)
        if bottom < 0 or since > bottom:
            return self.glide(quotient(self.shape, since, now))
        wave = self.shape(now)
        # MMEngine leaves the floor by an addition: what others did to the value at the floor stays.
        return self.glide(wave / self.shape(bottom + 1) if since == bottom else 0.0, wave)


@attrs.frozen(cache_hash=True)
class CosineRestart(Floored):
    """Start from `weights[k]` times the base value and go down by half a cosine wave, for each of some periods.

    MMEngine's `CosineRestartLR` (SGDR).  A restart forgets whatever the value was; after the last period it holds.

    Args:
        periods: steps of each period.
        weights: what part of the base value each starts from, MMEngine's `restart_weights`; by default all of it.

    >>> [round(CosineRestart([2, 3], [1.0, 0.5]).at(step).scale, 6) for step in range(6)]
    [1.0, 0.5, 0.5, 0.375, 0.125, 0.125]
    """

    periods: tuple[int, ...] = attrs.field(converter=as_tuple, validator=valid.each(valid.whole(1)), metadata=STEPS)
    weights: tuple[float, ...] = attrs.field(default=(), converter=as_tuple)

    @weights.validator
    def _check_weights(self, attribute: attrs.Attribute[Any], value: tuple[float, ...]) -> None:
        if value != ():
            valid.each(valid.number(0), count=len(self.periods))(self, attribute, value)

    @property
    def scales(self) -> bool:
        """Never true: a restart is absolute."""
        return False

    def shape(self, s: int) -> float:
        """Return the wave of the period that `s` lies in."""
        period, first = self._period(s)
        return half_wave(s - first, self.periods[period])

    def move(self, since: int, now: int) -> Move:
        """Return the part of the way, or if a restart lies between, the way from its beginning."""
        final = sum(self.periods) - 1
        now, since = min(now, final), min(since, final)
        period, first = self._period(now)
        if since >= first:
            return self.glide(quotient(self.shape, since, now))
        wave = self.shape(now)
        keep, gain, add = self.glide(0.0, wave)
        return keep, gain + (self._weight(period) - 1) * wave, add

    def _period(self, s: int) -> tuple[int, int]:
        first = 0
        for index, steps in enumerate(self.periods[:-1]):
            if s < first + steps:
                return index, first
            first += steps
        return len(self.periods) - 1, first

    def _weight(self, period: int) -> float:
        return self.weights[period] if self.weights else 1.0


def half_wave(s: int, period: int) -> float:
    """Return `(1 + cos(pi * s / period)) / 2`, exactly 1, 0, 1, ... at the multiples of the period.

    As the square of a sine it keeps all its digits near the floor, where one and the cosine cancel.
    """
    return math.sin(math.pi * abs(period - s % (2 * period)) / (2 * period)) ** 2
