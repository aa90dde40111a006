"""What a wrapper is: a frozen value that stands around a step's `grad` or its `update`."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import attrs
import torch
from torch import nn

from purerun import program
from purerun.data.shards import Share
from purerun.grad import WHOLE, Grads, Pass
from purerun.random import Key
from purerun.schedule import Affine
from purerun.state import Draft, StateError
from purerun.step import Step
from purerun.wrappers import orders


@attrs.frozen
class Wrapper(ABC):
    """A frozen value, `Step -> Step`: `wrapper(step)` is the step with the wrapper around it.

    A subclass overrides what it stands around and passes the rest through.  Its memory is
    one slot of the state, `slot`; it reads its slot from the draft and knows nothing of its
    neighbours.
    """

    @property
    def kind(self) -> str:
        """What the table of orders calls it: the name of its class, unless that says too little."""
        return type(self).__name__

    @property
    def slot(self) -> str:
        """The name of this wrapper's slot in the state; "" for a wrapper without a memory.

        Of a step with a name, it is a part of that entry (`state["ema"]["critic"]`); the wrapper
        finds its own part under `slot` in the draft, and need not know.
        """
        return ""

    def share(self, step: Step) -> Share | None:
        """Say which shards of each global batch this process reads: those of the inner step."""
        return step.share

    @property
    def turns(self) -> bool:
        """Whether this wrapper must learn from the loop when an epoch ends (`grads.last`)."""
        return False

    def mappable(self, step: Step) -> bool:
        """Say whether the step can be mapped over and differentiated: as the inner step can."""
        return step.mappable

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Make the wrapper's slot at full shape, from the inner step's first draft."""
        return {}

    def key(self, step: Step, draft: Draft, how: Pass) -> Key:
        """Stand around where the inner step's chance comes from."""
        return step.key(draft, how)

    def chance(self, step: Step, draft: Draft, how: Pass) -> AbstractContextManager[None]:
        """Stand around how the inner step's chance is set up, for who runs a traced program."""
        return step.chance(draft, how)

    def forward(self, step: Step, draft: Draft) -> AbstractContextManager[Any]:
        """Stand around the inner step's model, for who runs it outside of `read`."""
        return step.forward(draft)

    def host(self, step: Step, draft: Draft) -> dict[str, Affine]:
        """Stand around what the inner update asks of the counters."""
        return step.host(draft)

    def read(self, step: Step, draft: Draft, batch: Any, how: Pass) -> Grads:
        """Stand around the inner step's gradients."""
        return step.read(draft, batch, how)

    def vet(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Stand around the inner step's refusal of gradients."""
        step.vet(draft, grads)

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Stand around the inner step's update."""
        step.write(draft, grads)

    def settled(self, step: Step, draft: Draft, grads: Grads) -> bool:
        """Stand around whether the inner step's pass stands."""
        return step.settled(draft, grads)

    def note(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Stand around what is reported and remembered in each iteration, whether or not it updates."""
        step.note(draft, grads)

    def close(self, step: Step, draft: Draft) -> bool:
        """Stand around the end of a loop."""
        return step.close(draft)

    def check(self, step: Step) -> None:
        """Refuse a step that this cannot stand around.

        Raises:
            ValueError: it is such a step.
        """

    def __call__(self, step: Step) -> Step:
        """Wrap a step.

        Raises:
            ValueError: this makes no sense around it, see `purerun.wrappers.orders`.
        """
        orders.check(kinds(step), self.kind, searches=step.closes)
        self.check(step)
        return self.wrapped(step)

    def wrapped(self, step: Step) -> Step:
        """Make the step with this wrapper around it."""
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

    @property
    def share(self) -> Share | None:
        """Which shards of each global batch this process reads."""
        return self.wrapper.share(self.step)

    @property
    def turns(self) -> bool:
        """Whether any wrapper must learn when an epoch ends."""
        return self.wrapper.turns or self.step.turns

    def draft(self, seed: int) -> Draft:
        """Make the inner step's first draft, and the wrapper's slot in it."""
        draft = self.step.draft(seed)
        slot, memory = self.wrapper.slot, self.wrapper.memory(self.step, draft)
        if slot and slot in draft:
            raise StateError(f"expected no `{slot}` in the state, but the inner step has one; wrap only once with it")
        draft["fingerprint"] = self.fingerprint()
        if not slot:
            return draft
        return {**draft, slot: {self.slot: memory} if self.slot else memory}

    def read(self, draft: Draft, batch: Any, how: Pass = WHOLE) -> Grads:
        """Compute gradients through the wrapper."""
        with self._own(draft):
            return self.wrapper.read(self.step, draft, batch, how)

    def vet(self, draft: Draft, grads: Grads) -> None:
        """Refuse gradients through the wrapper."""
        with self._own(draft):
            self.wrapper.vet(self.step, draft, grads)

    def write(self, draft: Draft, grads: Grads) -> None:
        """Write the update through the wrapper."""
        with self._own(draft):
            self.wrapper.write(self.step, draft, grads)

    def key(self, draft: Draft, how: Pass = WHOLE) -> Key:
        """Say where chance comes from, through the wrapper."""
        return self.wrapper.key(self.step, draft, how)

    def chance(self, draft: Draft, how: Pass = WHOLE) -> AbstractContextManager[None]:
        """Set chance up through the wrapper."""
        return self.wrapper.chance(self.step, draft, how)

    def forward(self, draft: Draft) -> AbstractContextManager[Any]:
        """Make the `with` block of the model, through the wrapper."""
        return self.wrapper.forward(self.step, draft)

    @property
    def module(self) -> nn.Module:
        """The model that the inner step runs."""
        return self.step.module

    @property
    def mappable(self) -> bool:
        """Whether the step can be mapped over and differentiated, through the wrapper."""
        return self.wrapper.mappable(self.step)

    def host(self, draft: Draft) -> dict[str, Affine]:
        """Work out what an update asks of the counters, through the wrapper."""
        with self._own(draft):
            return self.wrapper.host(self.step, draft)

    def settled(self, draft: Draft, grads: Grads) -> bool:
        """Say whether a pass stands, through the wrapper."""
        with self._own(draft):
            return self.wrapper.settled(self.step, draft, grads)

    def note(self, draft: Draft, grads: Grads) -> None:
        """Report and remember through the wrapper."""
        with self._own(draft):
            self.wrapper.note(self.step, draft, grads)

    def close(self, draft: Draft) -> bool:
        """Write what is open at the end of a loop."""
        with self._own(draft):
            return self.wrapper.close(self.step, draft)

    def text(self) -> str:
        """Say the inner program, and the wrapper below it."""
        return f"{self.step.text()}\nwrapper: {program.describe(self.wrapper)}"

    def _own(self, draft: Draft) -> AbstractContextManager[None]:
        return _part(draft, self.wrapper.slot, self.slot) if self.slot and self.wrapper.slot else _ALL


_ALL = nullcontext()


@contextmanager
def _part(draft: Draft, slot: str, name: str) -> Iterator[None]:
    """Show a wrapper its own part of a slot, where several steps share a state."""
    whole = draft[slot]
    draft[slot] = whole[name]
    try:
        yield
    finally:
        whole[name] = draft[slot]
        draft[slot] = whole


def innermost(step: Step) -> Step:
    """Take all wrappers off a step."""
    return innermost(step.step) if isinstance(step, Wrapped) else step


def kinds(step: Step) -> list[str]:
    """List the kinds of the wrappers of a step, the innermost first.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> kinds(pr.wrap(step, pr.Clip(value=1.0), pr.EMA()))
    ['Clip by value', 'EMA']
    """
    return [*kinds(step.step), step.wrapper.kind] if isinstance(step, Wrapped) else []


def wrap(step: Step, *wrappers: Wrapper) -> Step:
    """Stand wrappers around a step, the innermost first.

    Raises:
        ValueError: an order makes no sense, see `purerun.wrappers.orders`.

    >>> import torch, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> wrapped = pr.wrap(step, pr.Accumulate(4), pr.EMA(0.999))
    >>> [name for name in wrapped.init(seed=0).names() if name not in step.init(seed=0).names()]
    ['accumulate', 'ema']
    """
    if not isinstance(step, Step):
        raise TypeError(f"expected a step to wrap, such as pr.TrainStep(...), got {step!r}")
    for wrapper in wrappers:
        if not isinstance(wrapper, Wrapper):
            raise TypeError(f"expected a wrapper such as pr.Accumulate(4), got {wrapper!r}")
        step = wrapper(step)
    return step
