"""Updates by gradients that are NaN or infinite, left out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun.grad import Grads, Pass
from purerun.state import Draft, lazy_clone
from purerun.step import NonFiniteLoss, Step
from purerun.valid import whole
from purerun.wrappers.finite import choose, decides, nonfinite, write_unless
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
        return {name: torch.zeros((), dtype=torch.int64, device=step.device) for name in ("total", "row", "longest")}

    def read(self, step: Step, draft: Draft, batch: Any, how: Pass) -> Grads:
        """Read, and keep the buffers of before if what was read is bad.

        Raises:
            NonFiniteLoss: it is bad, and so were the last ones.
        """
        # The forward pass writes into buffers.
        before = {name: lazy_clone(buffer) for name, buffer in draft["buffers"].items()}
        read = step.read(draft, batch, how)
        grads = _marked(read)
        looks = self._looks(draft)
        if before or looks:
            bad = nonfinite(grads.grads)
            if looks:
                self._stop(draft[self.slot], bad, read)
            grads = _held_back(bad, step, {**draft, "buffers": before}, grads)
        return grads

    def vet(self, step: Step, grads: Grads) -> None:
        """Let a loss pass that is NaN or infinite."""
        with suppress(NonFiniteLoss):
            step.vet(grads)

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Write the inner update, or leave it out, and count."""
        bad = nonfinite(grads.grads)
        write_unless(bad, step, draft, grads)
        counts = draft[self.slot]
        counts["total"] = counts["total"] + bad
        counts["row"] = (counts["row"] + 1) * bad
        # Since the last look, for an accelerator, which is asked late: the row may be over by then.
        looked = decides(bad) or self._looks(draft)
        counts["longest"] = counts["row"].clone() if looked else torch.maximum(counts["longest"], counts["row"])

    def note(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Report the counts."""
        step.note(draft, grads)
        start = f"{step.slot}." if step.slot else ""
        for name, count in (("skipped", "total"), ("skipped_in_a_row", "row")):
            draft["metrics"][start + name] = lazy_clone(draft[self.slot][count])

    def _stop(self, counts: Draft, bad: Tensor, read: Grads) -> None:
        now = (counts["row"] + 1) * bad
        longest = int(now if decides(bad) else torch.maximum(counts["longest"], now))
        if longest >= self.limit:
            raise NonFiniteLoss(_said(read, longest))

    def _looks(self, draft: Draft) -> bool:
        """Tell whether to ask in this iteration if it is time to stop."""
        row = draft[self.slot]["row"]
        if decides(row):
            return row.item() + 1 >= self.limit
        return (int(draft["iter"]) + 1) % self.limit == 0


def _marked(grads: Grads) -> Grads:
    """Make a gradient NaN if the loss is not finite, so that looking at gradients is enough."""
    fine = grads.metrics["loss"].isfinite()
    if decides(fine) and fine.item():
        return grads
    name = next(reversed(grads.grads))
    return attrs.evolve(grads, grads={**grads.grads, name: torch.where(fine, grads.grads[name], torch.nan)})


def _held_back(bad: Tensor, step: Step, before: Draft, grads: Grads) -> Grads:
    """Give back the buffers of before, and drop what wrappers around `grad` would keep."""
    if decides(bad):
        return attrs.evolve(grads, buffers={**grads.buffers, **before["buffers"]}, kept={}) if bad.item() else grads
    kept: dict[str, dict[str, Tensor]] = {}
    for slot, leaves in grads.kept.items():
        old = before[slot][step.slot] if step.slot else before[slot]
        kept[slot] = {name: choose(bad, old[name], leaf) for name, leaf in leaves.items()}
    buffers = {name: choose(bad, before["buffers"][name], buffer) for name, buffer in grads.buffers.items()}
    return attrs.evolve(grads, buffers=buffers, kept=kept)


def _said(grads: Grads, row: int) -> str:
    losses = [f"{name}={value.item()}" for name, value in grads.metrics.items() if not value.isfinite().all()]
    names = [f"`{name}`" for name, grad in grads.grads.items() if not grad.isfinite().all()]
    named = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    bad = [f"the loss ({', '.join(losses)})"] * bool(losses) + [f"the gradients of {named}"] * bool(names)
    now = f"this time {' and '.join(bad)} are not" if bad else "this time all are again"
    return (
        f"expected finite gradients, but {row} updates in a row had none; {now}. "
        "Nothing was written. Lower the learning rate, clip the gradients, look at these batches, or allow more with "
        "SkipNonFinite(limit=...)"
    )
