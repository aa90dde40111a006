"""An average of the weights over time, beside the weights."""

from __future__ import annotations

import attrs
import torch

from purerun.grad import Grads
from purerun.state import Draft, lazy_clone
from purerun.step import Step
from purerun.valid import number
from purerun.wrappers.wrapper import Wrapper


@attrs.frozen
class EMA(Wrapper):
    """Keep an exponential moving average of the parameters in the slot `ema`.

    After each iteration `average += (1 - decay) * (params - average)`.  Evaluate it with
    `ValStep(..., weights="ema")`: nothing is swapped in or out.

    Attributes:
        decay: how much of the average stays, in [0, 1].
    """

    decay: float = attrs.field(default=0.999, validator=number(0, 1))

    @property
    def slot(self) -> str:
        """Where the average lives."""
        return "ema"

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Start the average at the weights themselves."""
        return {
            "params": {name: draft["params"][name].clone() for name in step.trained},
            "buffers": {name: buffer.clone() for name, buffer in draft["buffers"].items()},
        }

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Move the average towards the parameters that the inner update wrote."""
        step.write(draft, grads)
        self._move(draft)

    def close(self, step: Step, draft: Draft) -> bool:
        """Take the update into the average that a loop ends with."""
        closed = step.close(draft)
        if closed:
            self._move(draft)
        return closed

    def _move(self, draft: Draft) -> None:
        average = draft[self.slot]["params"]
        torch._foreach_lerp_(list(average.values()), [draft["params"][name] for name in average], 1.0 - self.decay)
        draft[self.slot]["buffers"] = {name: lazy_clone(buffer) for name, buffer in draft["buffers"].items()}
