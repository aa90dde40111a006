"""What a wrapper is: a frozen value that stands around a step's `grad` or its `update`."""

from __future__ import annotations

from abc import ABC
from typing import Any

import attrs
import torch

from purerun import program
from purerun.grad import WHOLE, Grads, Pass
from purerun.state import Draft, StateError
from purerun.step import Step


@attrs.frozen
class Wrapper(ABC):
    """A frozen value, `Step -> Step`: `wrapper(step)` is the step with the wrapper around it.

    A subclass overrides what it stands around and passes the rest through.  Its memory is
    one slot of the state, `slot`; it reads its slot from the draft and knows nothing of its
    neighbours.
    """

    @property
    def slot(self) -> str:
        """The name of this wrapper's slot in the state; "" for a wrapper without a memory."""
        return ""

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Make the wrapper's slot at full shape, from the inner step's first draft."""
        return {}

    def read(self, step: Step, draft: Draft, batch: Any, how: Pass) -> Grads:
        """Stand around the inner step's gradients."""
        return step.read(draft, batch, how)

    def vet(self, step: Step, grads: Grads) -> None:
        """Stand around the inner step's refusal of gradients."""
        step.vet(grads)

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Stand around the inner step's update."""
        step.write(draft, grads)

    def close(self, step: Step, draft: Draft) -> bool:
        """Stand around the end of a loop."""
        return step.close(draft)

    def __call__(self, step: Step) -> Step:
        """Wrap a step."""
        return Wrapped(step, self)


@attrs.frozen
class Wrapped(Step):
    """A step with one wrapper around it.

    Attributes:
        step: the inner step.
        wrapper: what stands around it.
    """

    step: Step
    wrapper: Wrapper

    @property
    def slot(self) -> str:
        """The name of the inner step."""
        return self.step.slot

    @property
    def device(self) -> torch.device:
        """Where the inner step works."""
        return self.step.device

    @property
    def closes(self) -> bool:
        """Whether the inner update asks for gradients at other parameters."""
        return self.step.closes

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the parameters that the inner step moves."""
        return self.step.trained

    def draft(self, seed: int) -> Draft:
        """Make the inner step's first draft, and the wrapper's slot in it."""
        draft = self.step.draft(seed)
        slot, memory = self.wrapper.slot, self.wrapper.memory(self.step, draft)
        if slot and slot in draft:
            raise StateError(f"expected no `{slot}` in the state, but the inner step has one; wrap only once with it")
        draft["fingerprint"] = self.fingerprint()
        return {**draft, slot: memory} if slot else draft

    def read(self, draft: Draft, batch: Any, how: Pass = WHOLE) -> Grads:
        """Compute gradients through the wrapper."""
        return self.wrapper.read(self.step, draft, batch, how)

    def vet(self, grads: Grads) -> None:
        """Refuse gradients through the wrapper."""
        self.wrapper.vet(self.step, grads)

    def write(self, draft: Draft, grads: Grads) -> None:
        """Write the update through the wrapper."""
        self.wrapper.write(self.step, draft, grads)

    def note(self, draft: Draft) -> None:
        """Report what the inner step does."""
        self.step.note(draft)

    def close(self, draft: Draft) -> bool:
        """Write what is open at the end of a loop."""
        return self.wrapper.close(self.step, draft)

    def text(self) -> str:
        """Say the inner program, and the wrapper below it."""
        return f"{self.step.text()}\nwrapper: {program.describe(self.wrapper)}"


def wrap(step: Step, *wrappers: Wrapper) -> Step:
    """Stand wrappers around a step, the innermost first.

    >>> import torch, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> wrapped = pr.wrap(step, pr.Accumulate(4), pr.EMA(0.999))
    >>> [name for name in wrapped.init(seed=0).names() if name not in step.init(seed=0).names()]
    ['accumulate', 'ema']
    """
    for wrapper in wrappers:
        if not isinstance(wrapper, Wrapper):
            raise TypeError(f"expected a wrapper such as pr.Accumulate(4), got {wrapper!r}")
        step = wrapper(step)
    return step
