"""One optimizer step for several batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import attrs
import torch
from torch import Tensor

from purerun.bind import is_abstract
from purerun.grad import Grads
from purerun.merge import accumulate, plain, summed
from purerun.optim.optimizer import pick
from purerun.schedule import Affine
from purerun.state import Draft
from purerun.step import Step
from purerun.valid import one_of, whole
from purerun.wrappers.wrapper import Wrapper


@attrs.frozen
class Accumulate(Wrapper):
    """Apply the weighted mean of the gradients of `count` iterations at once.

    Each gradient enters with its weight (the samples of its batch, or the loss's own), so
    a window equals the big batch that it was cut from.  A part window is applied at the end of
    the loop.  What is inside of this wrapper writes once a window; what is outside, each iteration.

    Attributes:
        count: iterations a window.
        window: "run": windows cross epochs; "epoch": a part window is applied at the end of each epoch too, as
            a `TrainLoop` knows it (a loop of your own calls `step.finish` there).
        schedule: what schedules by iterations count: "iter", the iterations of the run, or "update", the
            updates of the optimizer.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> step = pr.wrap(step, Accumulate(2))
    >>> first = step(step.init(), torch.ones(3, 2))
    >>> second = step(first, torch.ones(1, 2))
    >>> float(first["accumulate", "weight"]), int(first["accumulate", "count"]), int(second["accumulate", "count"])
    (3.0, 1, 0)
    """

    count: int = attrs.field(validator=whole(1))
    window: Literal["run", "epoch"] = attrs.field(default="run", kw_only=True, validator=one_of("run", "epoch"))
    schedule: Literal["iter", "update"] = attrs.field(default="iter", kw_only=True, validator=one_of("iter", "update"))

    @property
    def slot(self) -> str:
        """Where the open window lives."""
        return "accumulate"

    @property
    def turns(self) -> bool:
        """Whether windows end with epochs."""
        return self.window == "epoch"

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Make an empty window: the sum of weighted gradients, the sum of weights, the count."""
        count = torch.zeros((), dtype=torch.int64, device="cpu")
        return {
            "grads": {name: _zeros(draft["params"][name]) for name in step.trained},
            # Beside the gradients: a loss that says its own weight says it there, and is not waited for.
            "weight": torch.zeros((), dtype=torch.float64, device=step.device),
            "count": count,
            **({"updates": count.clone()} if self.schedule == "update" else {}),
        }

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Add to the window, and apply it when it is full or its epoch ends."""
        window = draft[self.slot]
        accumulate(pick(window["grads"], step.trained), pick(grads.grads, step.trained), grads.weight)
        window["weight"] += grads.weight
        window["count"] += 1
        if int(window["count"]) == self.count or (self.turns and grads.last):
            self._apply(step, draft, grads)

    def host(self, step: Step, draft: Draft) -> dict[str, Affine]:
        """Work out what an update asks of the counters, by the count that schedules go by."""
        with self._clock(draft):
            return step.host(draft)

    def note(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Report the hyper-parameters in force, by the count that schedules go by."""
        with self._clock(draft):
            step.note(draft, grads)

    def close(self, step: Step, draft: Draft) -> bool:
        """Apply the part window that a loop ends in."""
        if not int(draft[self.slot]["count"]):
            return step.close(draft)
        self._apply(step, draft, Grads({}))
        step.close(draft)
        return True

    def _apply(self, step: Step, draft: Draft, grads: Grads) -> None:
        window = draft[self.slot]
        # In the step's own order: a window that was loaded has another, and what is inside may add them up.
        sums, weight = pick(window["grads"], step.trained), plain(window["weight"])
        # A window of empty batches has nothing to say; an accelerator is not asked, and its mean of nothing is 0.
        if isinstance(weight, Tensor) or weight:
            torch._foreach_div_(sums, weight + (weight == 0))
            # Under a transform a derivative may still need the means when the sums are zeroed, and would not notice.
            kept = [each.clone() if is_abstract(each) else each for each in sums]
            mean = {name: each.to(draft["params"][name].dtype) for name, each in zip(step.trained, kept, strict=True)}
            with self._clock(draft):
                step.write(draft, attrs.evolve(grads, grads=mean, weight=weight))
            if self.schedule == "update":
                window["updates"] += 1
        torch._foreach_zero_(sums)
        window["weight"].zero_()
        window["count"].zero_()

    def _clock(self, draft: Draft) -> AbstractContextManager[None]:
        """Let what is inside take the updates for the iterations, if schedules count those."""
        return _counting(draft, draft[self.slot]["updates"]) if self.schedule == "update" else _AS_IT_IS


_AS_IT_IS = nullcontext()


@contextmanager
def _counting(draft: Draft, updates: Tensor) -> Iterator[None]:
    before, draft["iter"] = draft["iter"], updates.clone()
    try:
        yield
    finally:
        draft["iter"] = before


def _zeros(param: Tensor) -> Tensor:
    return torch.zeros_like(param, dtype=summed(param.dtype), memory_format=torch.preserve_format)
