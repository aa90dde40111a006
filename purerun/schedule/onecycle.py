"""The one-cycle schedule: up to a peak, down to nearly nothing, whatever the base value."""

from __future__ import annotations

from typing import Literal

import attrs

from purerun import valid
from purerun.schedule.window import ANNEAL, Move, Schedule, anneal_field, period_field, span


@attrs.frozen(cache_hash=True)
class OneCycle(Schedule):
    """Go from `peak / div_factor` up to the peak and down to `peak / div_factor / final_div_factor`.

    MMEngine's and torch's `OneCycleLR` (Smith and Topin, "Super-convergence", 2018; the two phases are fastai's).
    The value is absolute: it forgets the base value and what came before.  The momentum that torch cycles in
    the opposite direction is a second schedule: from 0.95 down to 0.85 and back is
    `OneCycle(0.85, div_factor=0.85 / 0.95, final_div_factor=1.0, param="momentum", ...)`.

    Args:
        peak: the value in the middle; MMEngine's `eta_max`, torch's `max_lr`.
        period: steps of the cycle, MMEngine's `total_steps`; by default the window's.  After it the value holds.
        pct_start: the part of the cycle, 0 to 1, that goes up.
        anneal: the way between the values, "cos" or "linear"; MMEngine's `anneal_strategy`.
        div_factor: the peak divided by the first value.
        final_div_factor: the first value divided by the last.
        three_phase: go down to the first value as fast as up, and only then to the last.

    >>> schedule = OneCycle(25.0, period=10, anneal="linear", final_div_factor=2.0)
    >>> [round(schedule.at(step).shift, 6) for step in range(10)]
    [1.0, 13.0, 25.0, 21.5, 18.0, 14.5, 11.0, 7.5, 4.0, 0.5]
    """

    peak: float = attrs.field(validator=valid.number(0))
    period: int | None = period_field()
    pct_start: float = attrs.field(default=0.3, validator=valid.number(0, 1), kw_only=True)
    anneal: Literal["cos", "linear"] = anneal_field()
    div_factor: float = attrs.field(default=25.0, validator=valid.above(0), kw_only=True)
    final_div_factor: float = attrs.field(default=1e4, validator=valid.above(0), kw_only=True)
    three_phase: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool), kw_only=True)

    @property
    def scales(self) -> bool:
        """Never true: the value is absolute."""
        return False

    def move(self, since: int, now: int) -> Move:
        """Return the absolute value of own step `now`."""
        return 0.0, 0.0, self.value(now)

    def value(self, s: int) -> float:
        """Return the hyper-parameter at own step `s`."""
        s = min(s, span(self, self.period) - 1)
        before, start = 0.0, self.peak / self.div_factor
        for turn, stop in self._turns():
            if s <= turn:
                break
            before, start = turn, stop
        return ANNEAL[self.anneal](start, stop, (s - before) / (turn - before) if turn != before else 1.0)

    def _turns(self) -> tuple[tuple[float, float], ...]:
        """Return at which own step each phase ends, and with which value."""
        steps = span(self, self.period)
        first = self.peak / self.div_factor
        top = (self.pct_start * steps - 1, self.peak)
        back = ((2 * self.pct_start * steps - 2, first),) if self.three_phase else ()
        return (top, *back, (steps - 1, first / self.final_div_factor))
