"""The schedules that only multiply: constant, freeze, linear, geometric, steps, exponential, inverse, cyclic.

Each row of this table is a class with one formula: `shape(s)`, by what the value is multiplied at own
step `s`, or for the decays `count(s)`, how many times `gamma` has been applied by then.  They commute:
wherever such schedules overlap, the result is the product.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from typing import Literal

import attrs

from purerun import valid
from purerun.schedule.window import (
    ANNEAL,
    FOREVER,
    STEPS,
    Move,
    Schedule,
    anneal_field,
    as_tuple,
    need_end,
    period_field,
    quotient,
    span,
)


class Scaling(Schedule):
    """A schedule that multiplies the value by a factor of its own step."""

    __slots__ = ()

    @abstractmethod
    def shape(self, s: int) -> float:
        """Return by what the value at the window's beginning is multiplied at own step `s`."""

    @property
    def scales(self) -> bool:
        """Always true."""
        return True

    def move(self, since: int, now: int) -> Move:
        """Return the quotient of the two factors."""
        return quotient(self.shape, since, now), 0.0, 0.0


class Decay(Schedule):
    """A schedule that multiplies the value by its `gamma`, again and again."""

    __slots__ = ()

    @property
    @abstractmethod
    def gamma(self) -> float:
        """By what a decay multiplies."""

    @abstractmethod
    def count(self, s: int) -> int:
        """Return how many times `gamma` has been applied at own step `s`."""

    @property
    def scales(self) -> bool:
        """Always true."""
        return True

    def move(self, since: int, now: int) -> Move:
        """Return `gamma` to the number of decays between the two (no quotient: a factor may underflow)."""
        before = self.count(since) if since >= 0 else 0
        return self.gamma ** (self.count(now) - before), 0.0, 0.0


@attrs.frozen(cache_hash=True)
class Constant(Scaling):
    """Multiply by `factor`, and by no more than 1 from the window's last step on.

    MMEngine's `ConstantLR` (and `ConstantMomentum`, `ConstantParamScheduler`): the factor is in force for
    `end - begin - 1` steps.  Without an end it stays.

    Args:
        factor: from 0 to 1.

    >>> [Constant(0.5, end=4).at(step).scale for step in range(6)]
    [0.5, 0.5, 0.5, 1.0, 1.0, 1.0]
    """

    factor: float = attrs.field(default=1 / 3, validator=valid.number(0, 1))

    def shape(self, s: int) -> float:
        """Return the factor until the last step; a window of one step has no last step to end it."""
        return self.factor if s < self.last or s == 0 else 1.0


@attrs.frozen(cache_hash=True)
class Freeze(Scaling):
    """Multiply by 0 from `begin` until before `end`, and by 1 before and after.

    Meant for the hyper-parameter `active` of a share of the parameters (`pr.optim.split`): at 0 these parameters
    and the optimizer's slots for them stay as they are.  Several of them freeze several times.

    >>> [Freeze(begin=1, end=3, param="backbone.active").at(step).scale for step in range(5)]
    [1.0, 0.0, 0.0, 1.0, 1.0]
    """

    @property
    def stop(self) -> int:
        """Never: what was frozen is freed again at `end`, which is a move too."""
        return FOREVER

    def shape(self, s: int) -> float:
        """Return 0 in the window."""
        return 0.0 if self.end is None or s < self.end - self.begin else 1.0


@attrs.frozen(cache_hash=True)
class Linear(Scaling):
    """Multiply by a factor that goes from `start` to `end_factor` in a straight line.

    MMEngine's `LinearLR`: it is there at the window's last step, `end - begin - 1`, one earlier than torch's.
    The usual warm-up.  Unlike with MMEngine, `start` may be 0.

    Args:
        start: the factor of the first step, from 0 to 1; MMEngine's `start_factor`.
        end_factor: the factor of the last one, from 0 to 1.

    >>> [Linear(0.0, end=5).at(step).scale for step in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    start: float = attrs.field(default=1 / 3, validator=valid.number(0, 1))
    end_factor: float = attrs.field(default=1.0, validator=valid.number(0, 1))

    def __attrs_post_init__(self) -> None:
        need_end(self)

    def shape(self, s: int) -> float:
        """Interpolate; exact at both ends."""
        done = s / self.last if self.last else 0.0
        return self.start * (1 - done) + self.end_factor * done


@attrs.frozen(cache_hash=True)
class Geometric(Scaling):
    """Multiply by a factor that goes from `start` to `end_factor` by equal ratios.

    MMCV 1.x's exponential warm-up over W iterations with ratio r is `Geometric(r, end=W + 1, by="iter")`;
    MMEngine has no counterpart.

    Args:
        start: the factor of the first step, above 0.
        end_factor: the factor of the window's last step, above 0.

    >>> [round(Geometric(0.125, end=4).at(step).scale, 6) for step in range(5)]
    [0.125, 0.25, 0.5, 1.0, 1.0]
    """

    start: float = attrs.field(validator=valid.above(0))
    end_factor: float = attrs.field(default=1.0, validator=valid.above(0))

    def __attrs_post_init__(self) -> None:
        need_end(self)

    def shape(self, s: int) -> float:
        """Interpolate the logarithm; exact at both ends."""
        done = s / self.last if self.last else 0.0
        return self.start ** (1 - done) * self.end_factor**done


@attrs.frozen(cache_hash=True)
class Step(Decay):
    """Multiply by `gamma` after each `step_size` steps: MMEngine's `StepLR`.

    >>> [Step(2, 0.5).at(step).scale for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    step_size: int = attrs.field(validator=valid.whole(1), metadata=STEPS)
    gamma: float = attrs.field(default=0.1, validator=valid.number(0))

    def count(self, s: int) -> int:
        """Return how many whole `step_size` fit."""
        return s // self.step_size


@attrs.frozen(cache_hash=True)
class MultiStep(Decay):
    """Multiply by `gamma` at each milestone: MMEngine's `MultiStepLR`.

    Args:
        milestones: own steps, so counted from `begin`, in rising order; one that is there twice counts twice.
        gamma: the factor.

    >>> [MultiStep([2, 3], 0.5).at(step).scale for step in range(5)]
    [1.0, 1.0, 0.5, 0.25, 0.25]
    """

    milestones: tuple[int, ...] = attrs.field(
        converter=as_tuple, validator=[valid.each(valid.whole(0)), valid.rising], metadata=STEPS
    )
    gamma: float = attrs.field(default=0.1, validator=valid.number(0))

    def count(self, s: int) -> int:
        """Return how many milestones have been reached."""
        return bisect_right(self.milestones, s)


@attrs.frozen(cache_hash=True)
class Exponential(Decay):
    """Multiply by `gamma` at each step: MMEngine's `ExponentialLR`.

    >>> [Exponential(0.5).at(step).scale for step in range(4)]
    [1.0, 0.5, 0.25, 0.125]
    """

    gamma: float = attrs.field(validator=valid.number(0))

    def count(self, s: int) -> int:
        """Return `s`: once a step."""
        return s


@attrs.frozen(cache_hash=True)
class Inverse(Scaling):
    """Multiply by `(1 + gamma * s) ** -power`: MMCV 1.x's `inv` policy.

    >>> [Inverse(1.0).at(step).scale for step in range(4)]
    [1.0, 0.5, 0.3333333333333333, 0.25]
    """

    gamma: float = attrs.field(validator=valid.number(0))
    power: float = attrs.field(default=1.0, validator=valid.number(0))

    def shape(self, s: int) -> float:
        """Return the power law."""
        return (1 + self.gamma * s) ** -self.power


@attrs.frozen(cache_hash=True)
class Cyclic(Scaling):
    """Go from the value up to `target[0]` times it, down to `target[1]` times it, and again.

    MMCV 1.x's `cyclic` policy (Smith, "Cyclical learning rates for training neural networks", 2017).  A cycle
    has `period // cycles` steps, of which `int(ratio_up * that)` go up.  With `anneal="linear"`, a second
    target of 1 and gamma 1 it is torch's `CyclicLR` "triangular", with gamma 0.5 its "triangular2".

    Args:
        target: the two factors.  With `param="momentum"` they are usually at most 1.
        cycles: cycles in the period; MMCV's `cyclic_times`.
        ratio_up: which part of a cycle goes up; MMCV's `step_ratio_up`.
        anneal: the way between the two, "cos" or "linear".
        gamma: by what each cycle shrinks `target[0] - 1`.
        period: steps of all cycles; by default those of the window.

    >>> schedule = Cyclic((5.0, 1.0), cycles=2, ratio_up=0.5, anneal="linear", end=8)
    >>> [schedule.at(step).scale for step in range(9)]
    [1.0, 3.0, 5.0, 3.0, 1.0, 3.0, 5.0, 3.0, 3.0]
    """

    target: tuple[float, float] = attrs.field(
        default=(10.0, 1e-4), converter=as_tuple, validator=valid.each(valid.number(0), count=2)
    )
    cycles: int = attrs.field(default=1, validator=valid.whole(1), kw_only=True)
    ratio_up: float = attrs.field(default=0.4, validator=valid.number(0, 1), kw_only=True)
    anneal: Literal["cos", "linear"] = anneal_field()
    gamma: float = attrs.field(default=1.0, validator=valid.number(0), kw_only=True)
    period: int | None = period_field()

    def __attrs_post_init__(self) -> None:
        if span(self, self.period) < self.cycles:
            raise valid.refuse(
                self, "cycles", f"at most the steps of the period, {span(self, self.period)}", self.cycles
            )

    def shape(self, s: int) -> float:
        """Find the cycle and the phase of `s`, then interpolate."""
        steps = span(self, self.period) // self.cycles
        rising = int(self.ratio_up * steps)
        cycle, phase = divmod(s, steps)
        peak = 1 + (self.target[0] - 1) * self.gamma**cycle
        if phase < rising:
            return ANNEAL[self.anneal](1.0, peak, phase / rising)
        return ANNEAL[self.anneal](peak, self.target[1], (phase - rising) / (steps - rising))
