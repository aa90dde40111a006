"""Lower a hyper-parameter when a score has stopped getting better."""

from __future__ import annotations

import math
from typing import Literal

import attrs
import torch

from purerun.hooks.hook import Hook
from purerun.population import members
from purerun.state import Draft, State, StateError
from purerun.valid import between, number, one_of, whole


@attrs.frozen
class ReduceOnPlateau(Hook):
    """Multiply a base hyper-parameter by `factor` after `patience` bad checks in a row.

    The rules are those of `torch.optim.lr_scheduler.ReduceLROnPlateau` and of MMEngine's
    `ReduceOnPlateauLR`; what they remember lives in the slot `plateau`.  Put it after the
    `Validate` whose score it reads, with the same `every`.

    Attributes:
        monitor: the name of a score, or of a metric of the step.
        param: the hyper-parameter.
        rule: is "less" or "greater" better?
        factor: in (0, 1).
        patience: bad checks that are forgiven.
        threshold: how much better counts as better.
        threshold_rule: "rel" or "abs".
        cooldown: checks after a reduction in which nothing counts as bad.
        min_value: never go below.
        eps: leave the value if it would change by less.
    """

    monitor: str
    param: str = attrs.field(default="lr", kw_only=True)
    rule: Literal["less", "greater"] = attrs.field(default="less", kw_only=True, validator=one_of("less", "greater"))
    factor: float = attrs.field(default=0.1, kw_only=True, validator=between(0, 1))
    patience: int = attrs.field(default=10, kw_only=True, validator=whole(0))
    threshold: float = attrs.field(default=1e-4, kw_only=True, validator=number(0))
    threshold_rule: Literal["rel", "abs"] = attrs.field(default="rel", kw_only=True, validator=one_of("rel", "abs"))
    cooldown: int = attrs.field(default=0, kw_only=True, validator=whole(0))
    min_value: float = attrs.field(default=0.0, kw_only=True)
    eps: float = attrs.field(default=1e-8, kw_only=True)
    slot: str = attrs.field(default="plateau", kw_only=True)

    @property
    def writes(self) -> tuple[str, ...]:
        """Its memory, and the hyper-parameters."""
        return (self.slot, "hyper")

    def slots(self, state: State) -> Draft:
        """Make the memory: the best value, bad checks in a row, checks left to cool down.

        Raises:
            StateError: there is no such hyper-parameter.
        """
        if self.param not in state["hyper"].names():
            raise StateError(f"expected a hyper-parameter among {list(state['hyper'].names())}, got {self.param!r}")
        if members(state):
            raise StateError(
                f"expected a single run, got a population of {members(state)}: the score of one member would move the "
                "hyper-parameters of all; schedule them, or let pr.evolve choose"
            )
        worst = math.inf if self.rule == "less" else -math.inf
        counts = {name: torch.zeros((), dtype=torch.int64, device="cpu") for name in ("bad", "cooling")}
        return {self.slot: {"best": torch.tensor(worst, dtype=torch.float64, device="cpu"), **counts}}

    def __call__(self, state: State) -> State:
        """Look at the monitored value once."""
        value, memory = self._monitored(state), state[self.slot]
        best, bad, cooling = float(memory["best"]), int(memory["bad"]), int(memory["cooling"])
        if self._better(value, best):
            best, bad = value, 0
        else:
            bad += 1
        if cooling:
            cooling, bad = cooling - 1, 0
        changes: Draft = {}
        if bad > self.patience:
            cooling, bad = self.cooldown, 0
            changes = self._reduced(float(state["hyper", self.param]))
        return state.replace({self.slot: {"best": best, "bad": bad, "cooling": cooling}, **changes})

    def _monitored(self, state: State) -> float:
        for entry in ("scores", "metrics"):
            if entry in state.names() and self.monitor in state[entry].names():
                return float(state[entry, self.monitor])
        have = [*state["scores"].names(), *state["metrics"].names()]
        raise StateError(
            f"expected a score or metric {self.monitor!r} to monitor, got {have}; is Validate before this hook?"
        )

    def _better(self, value: float, best: float) -> bool:
        if math.isinf(best):
            return value < best if self.rule == "less" else value > best
        # As torch's, to the last rounding.
        sign = -1.0 if self.rule == "less" else 1.0
        bar = best * (1.0 + sign * self.threshold) if self.threshold_rule == "rel" else best + sign * self.threshold
        return value < bar if self.rule == "less" else value > bar

    def _reduced(self, value: float) -> Draft:
        lower = max(value * self.factor, self.min_value)
        return {"hyper": {self.param: lower}} if value - lower > self.eps else {}
