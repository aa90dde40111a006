"""Updates left out one after the other: how they are counted in the state, and the error when there are too many.

Both the loss scale of `Precision` and `SkipNonFinite` leave out updates; a run whose every update is left out would
go on for ever and learn nothing.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from purerun.grad import Grads
from purerun.state import Draft, lazy_clone
from purerun.step import NonFiniteLoss, Step
from purerun.wrappers.finite import decides, nonfinite


def none(device: torch.device) -> Draft:
    """Make the counts of no update left out: `total`, and `row`, those one after the other."""
    return {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("total", "row")}


def count(counts: Draft, bad: Tensor, limit: int) -> None:
    """Count an update that was left out, or one that was not.

    On an accelerator, which is asked only now and then, a row that is too long does not end before that.
    """
    row = counts["row"]
    after = (row + 1) * bad
    if not decides(bad):
        after = torch.where(row >= limit, row + bad, after)
    counts["total"], counts["row"] = counts["total"] + bad, after


def refuse(counts: Draft, iter: Tensor, grads: Grads, limit: int, remedy: str) -> None:
    """Raise if these gradients would be one update too many to be left out; before anything is written.

    On an accelerator that is looked at in every `limit`-th iteration only, because looking waits for the device.

    Args:
        counts: as they are before.
        iter: the iteration.
        grads: those of the whole batch.
        limit: so many in a row are an error.
        remedy: what to do, for the message.

    Raises:
        NonFiniteLoss: it would.
    """
    row = counts["row"]
    if not (row.item() + 1 >= limit if decides(row) else (int(iter) + 1) % limit == 0):
        return
    now = (row + 1) * nonfinite(grads.grads)
    longest = int(now if decides(row) else torch.maximum(row, now))
    if longest >= limit:
        raise NonFiniteLoss(_said(grads, longest) + remedy)


def marked(grads: Grads) -> Grads:
    """Make a gradient NaN if the loss is not finite, so that looking at gradients is enough."""
    fine = grads.metrics["loss"].isfinite()
    if decides(fine) and fine.item():
        return grads
    name = next(reversed(grads.grads))
    spoiled = torch.where(fine.to(grads.grads[name].device), grads.grads[name], torch.nan)
    return attrs.evolve(grads, grads={**grads.grads, name: spoiled})


def report(step: Step, draft: Draft, slot: str) -> None:
    """Report the counts as `skipped` and `skipped_in_a_row`."""
    start = f"{step.slot}." if step.slot else ""
    for name, count in (("skipped", "total"), ("skipped_in_a_row", "row")):
        draft["metrics"][start + name] = lazy_clone(draft[slot][count])


def _said(grads: Grads, row: int) -> str:
    terms = [f"{name}={value.item()}" for name, value in grads.metrics.items() if not value.isfinite().all()]
    names = [f"`{name}`" for name, grad in grads.grads.items() if not grad.isfinite().all()]
    named = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    beside = f" (beside {', '.join(terms)})" if terms else ""
    if not grads.metrics["loss"].isfinite().all():
        bad = f"the loss ({', '.join(terms)}) is not"  # and so are its gradients
    else:
        bad = f"the gradients of {named}{beside} are not" if names else ""
    now = f"this time {bad}" if bad else "this time all are again"
    return f"expected finite gradients, but {row} updates in a row had none; {now}. Nothing was written. "
