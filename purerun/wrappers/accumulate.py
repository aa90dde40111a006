"""One optimizer step for several batches."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from purerun.grad import Grads
from purerun.optim.optimizer import zeros
from purerun.state import Draft
from purerun.step import Step
from purerun.valid import whole
from purerun.wrappers.wrapper import Wrapper


@attrs.frozen
class Accumulate(Wrapper):
    """Apply the weighted mean of the gradients of `count` iterations at once.

    Each gradient enters with its weight (the samples of its batch, or the loss's own), so
    a window equals the big batch that it was cut from.  Windows count iterations and may
    cross epochs; a part window is applied at the end of the loop.

    Attributes:
        count: iterations a window.
    """

    count: int = attrs.field(validator=whole(1))

    @property
    def slot(self) -> str:
        """Where the open window lives."""
        return "accumulate"

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Make an empty window: the sum of weighted gradients, the sum of weights, the count."""
        return {
            "grads": zeros({name: draft["params"][name] for name in step.trained}),
            "weight": torch.zeros((), dtype=torch.float64, device="cpu"),
            "count": torch.zeros((), dtype=torch.int64, device="cpu"),
        }

    def __call__(self, step: Step) -> Step:
        """Wrap a step.

        Raises:
            ValueError: its optimizer is a line search, which needs one batch to search on.
        """
        if step.closes:
            raise ValueError(
                "expected a step whose optimizer takes gradients as they are, got one that searches along a line: the "
                "batches of a window are gone when it is full. Make the batch larger instead"
            )
        return super().__call__(step)

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Add to the window, and apply it when it is full."""
        window = draft[self.slot]
        torch._foreach_add_(list(window["grads"].values()), _weighted(grads, list(window["grads"])))
        window["weight"] += grads.weight
        window["count"] += 1
        if int(window["count"]) == self.count:
            self._apply(step, draft, grads)

    def close(self, step: Step, draft: Draft) -> bool:
        """Apply the part window that a loop ends in."""
        if not int(draft[self.slot]["count"]):
            return step.close(draft)
        self._apply(step, draft, Grads({}))
        step.close(draft)
        return True

    def _apply(self, step: Step, draft: Draft, grads: Grads) -> None:
        window = draft[self.slot]
        weight = window["weight"].item()
        # A window of empty batches has nothing to say.
        if weight:
            names = list(window["grads"])
            mean = torch._foreach_div(list(window["grads"].values()), weight)
            step.write(draft, attrs.evolve(grads, grads=dict(zip(names, mean, strict=True)), weight=weight))
        torch._foreach_zero_(list(window["grads"].values()))
        window["weight"].zero_()
        window["count"].zero_()


def _weighted(grads: Grads, names: list[str]) -> Any:
    tensors = [grads.grads[name] for name in names]
    return torch._foreach_mul(tensors, grads.weight)
