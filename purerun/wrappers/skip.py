"""Updates by gradients that are NaN or infinite, left out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs

from purerun.grad import Grads, Pass
from purerun.state import Draft, lazy_clone
from purerun.step import NonFiniteLoss, Step
from purerun.valid import whole
from purerun.wrappers import streak
from purerun.wrappers.finite import held_back, nonfinite, write_unless
from purerun.wrappers.wrapper import Wrapper


@attrs.frozen
class SkipNonFinite(Wrapper):
    """Leave out an update whose gradients or loss are NaN or infinite, and stop after several in a row.

    Such a step leaves parameters, buffers and the slots of everything inside of this wrapper as they were.
    The iteration counts all the same.  How many updates were left out, and how many of them in a row, is
    kept in the slot `skip` and reported as `skipped` and `skipped_in_a_row`.

    A loss that is not finite makes its gradients NaN, so that a window that it falls into is left out, too.

    On an accelerator each tensor is chosen there, and whether to stop is asked every `limit` iterations only.  What
    waits for the device is what counts on the host inside of this wrapper: windows, averages, SGD's momentum.

    Attributes:
        limit: so many in a row are an error; it comes before anything is written.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> step = pr.wrap(step, SkipNonFinite(limit=3))
    >>> first = step.init()
    >>> second = step(first, torch.full((4, 2), float("nan")))
    >>> int(second["iter"]), int(second["skip", "total"])
    (1, 1)
    >>> torch.equal(first["params", "bias"], second["params", "bias"])
    True
    """

    limit: int = attrs.field(default=10, validator=whole(1))

    @property
    def slot(self) -> str:
        """Where the counts live."""
        return "skip"

    def mappable(self, step: Step) -> bool:
        """Say that this cannot be mapped over: what it counts and raises is of one run."""
        return False

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Make counts of zero, where the gradients are."""
        return streak.none(step.device)

    def read(self, step: Step, draft: Draft, batch: Any, how: Pass) -> Grads:
        """Read, and keep the buffers of before if what was read is bad."""
        # The forward pass writes into buffers.
        before = {name: lazy_clone(buffer) for name, buffer in draft["buffers"].items()}
        grads = streak.marked(step.read(draft, batch, how))
        return held_back(nonfinite(grads.grads), step, {**draft, "buffers": before}, grads) if before else grads

    def vet(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Let a loss pass that is NaN or infinite, unless there were too many.

        Raises:
            NonFiniteLoss: there were.
        """
        streak.refuse(draft[self.slot], draft["iter"], grads, self.limit, _REMEDY)
        with suppress(NonFiniteLoss):
            step.vet(draft, grads)

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Write the inner update, or leave it out, and count."""
        bad = nonfinite(grads.grads)
        write_unless(bad, step, draft, grads)
        streak.count(draft[self.slot], bad, self.limit)

    def note(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Report the counts."""
        step.note(draft, grads)
        streak.report(step, draft, self.slot)


_REMEDY = (
    "Lower the learning rate, clip the gradients, look at these batches, or allow more with SkipNonFinite(limit=...)"
)
