"""The patient: a recipe's model, run on a batch by nothing but torch, so that its faults show one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from purerun import batch as _batch
from purerun import grad
from purerun.doctor.effects import marks
from purerun.random import Key, keyed_everywhere
from purerun.recipe import Alternation, Part, Recipe
from purerun.train import TrainStep
from purerun.wrappers import Wrapped


@attrs.frozen
class Computed:
    """What one batch says.

    Attributes:
        total: the loss.
        terms: what it reports.
        grads: parameter -> gradient; None for one that does not reach the loss.
        buffers: after the forward.
        marks: where the global generators stood at the end.
    """

    total: Tensor
    terms: dict[str, Any]
    grads: dict[str, Tensor | None]
    buffers: dict[str, Tensor]
    marks: dict[str, str]


@attrs.frozen
class Patient:
    """A recipe with its module, and a few batches of its training data and of its validation data.

    Of a recipe with several steps, each makes a patient, as if it were alone.

    Attributes:
        recipe: the recipe; it has one step.
        module: its model.
        step: its training step, without wrappers.
        batches: of its training data, at least one.
        judged: of its validation data, or of its test data; perhaps none.
    """

    recipe: Recipe
    module: nn.Module
    step: TrainStep
    batches: Sequence[Any]
    judged: Sequence[Any] = ()

    @property
    def part(self) -> Part:
        """What the step learns by."""
        (part,) = self.recipe.parts.values()
        return part

    def compute(self, batch: Any, iter: int = 0) -> Computed:
        """Compute loss and gradients, at the key of an iteration; the buffers are put back."""
        batch = _batch.move(batch, self.step.device)
        params = {name: self.step.binding.params[name] for name in self.step.trained}
        with _buffers_kept(self.module), keyed_everywhere(Key.of(self.recipe.seed, "step", iter)), torch.enable_grad():
            self.module.train()
            total, _, terms = grad.reduce(self.part.loss(self.module, batch), batch)
            grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
            buffers = {name: buffer.detach().clone() for name, buffer in self.module.named_buffers()}
            return Computed(total.detach(), dict(terms), dict(zip(params, grads, strict=True)), buffers, marks())

    def judge(self, batch: Any) -> Any:
        """Compute the output that metrics are given."""
        batch = _batch.move(batch, self.step.device)
        with _buffers_kept(self.module), keyed_everywhere(Key.of(self.recipe.seed, "evaluate", 0)), torch.no_grad():
            self.module.eval()
            return self.recipe.forward(self.module, batch)


def inner_steps(step: Any) -> Mapping[str, TrainStep]:
    """List what a recipe learns by, without wrappers: name -> step; the name of the only one is ""."""
    steps = step.steps if isinstance(step, Alternation) else {"": step}
    return {name: inner_step(each) for name, each in steps.items()}


def inner_step(step: Any) -> Any:
    """Take the wrappers off a step.

    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> inner_step(pr.wrap(step, pr.EMA())) is step
    True
    """
    return inner_step(step.step) if isinstance(step, Wrapped) else step


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put buffers back, those too that were bound anew."""
    kept = [
        (inner._buffers, name, buffer, None if buffer is None else buffer.clone())
        for inner in module.modules()
        for name, buffer in inner._buffers.items()
    ]
    try:
        yield
    finally:
        for place, name, buffer, value in kept:
            place[name] = buffer
            if buffer is not None and value is not None:
                with torch.no_grad():
                    buffer.copy_(value)
