"""Gradients that are not finite: how they are found, and an update that leaves everything as it was there.

Both use the kernel of torch's `GradScaler`, which reads gradients once and does not wait for a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun.bind import is_abstract
from purerun.grad import Grads
from purerun.owned import overlaps, unshared
from purerun.state import REPORT, Draft, lazy_clone
from purerun.step import Step

_C: Any = torch._C


def unscale(grads: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
    """Multiply gradients by a number, in place where they share no memory.

    Args:
        grads: name -> gradient; given up.
        factor: 0-d float32 tensor.

    >>> unscale({"w": torch.tensor([2.0, 4.0])}, torch.tensor(0.5))["w"].tolist()
    [1.0, 2.0]
    """
    tensors = [*grads.values()]
    if any(map(is_abstract, tensors)):
        return {name: grad * factor.to(grad) for name, grad in grads.items()}
    own = unshared(tensors)
    _multiply(own, factor)
    return dict(zip(grads, own, strict=True))


def nonfinite(grads: Mapping[str, Tensor]) -> Tensor:
    """Tell whether any gradient has a NaN or an infinity: 0-d tensor of bool, beside the first one.

    >>> bool(nonfinite({"w": torch.tensor([1.0, float("inf")])})), bool(nonfinite({"w": torch.ones(2)}))
    (True, False)
    """
    tensors = [*grads.values()]
    if any(map(is_abstract, tensors)):
        return torch.stack([~grad.isfinite().all() for grad in tensors]).any()
    # Times one: what is written is what was there.
    return _multiply([grad.clone() if overlaps(grad) else grad for grad in tensors], None)


def decides(flag: Tensor) -> bool:
    """Tell whether Python may look at a flag without waiting for a device."""
    return flag.device.type == "cpu" and not is_abstract(flag)


def choose(bad: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Take the old tensor where a flag says so, without waiting where it need not."""
    if bad.device != new.device:
        # A counter of the host can only be chosen by the host.
        bad = bad.to(new.device)
    return torch.where(bad, old, new)


def write_unless(bad: Tensor, step: Step, draft: Draft, grads: Grads) -> None:
    """Write a step's update, or nothing at all where `bad` is true.

    On the CPU that is a decision.  On an accelerator the update is written, and then each tensor that it
    changed is chosen anew; that waits for the device only for what the update keeps on the host, such as
    the count of a window, or of the updates of SGD with momentum.  A window that ends with its epoch ends without
    the update that was left out.

    Args:
        bad: 0-d tensor of bool.
        step: whose update it is.
        draft: what it writes into.
        grads: the gradients.
    """
    ends = grads.last and step.turns
    if decides(bad) or ends:
        if not bad.item():
            step.write(draft, grads)
        elif ends:
            step.close(draft)
        return
    before = _kept(draft)
    step.write(draft, grads)
    _put_back(bad, draft, before)


def held_back(bad: Tensor, step: Step, before: Draft, grads: Grads) -> Grads:
    """Give back the buffers of before, and drop what wrappers around `grad` would keep."""
    if decides(bad):
        return attrs.evolve(grads, buffers={**grads.buffers, **before["buffers"]}, kept={}) if bad.item() else grads
    kept: dict[str, dict[str, Tensor]] = {}
    for slot, leaves in grads.kept.items():
        old = before[slot][step.slot] if step.slot else before[slot]
        kept[slot] = {name: choose(bad, old[name], leaf) for name, leaf in leaves.items()}
    buffers = {name: choose(bad, before["buffers"][name], buffer) for name, buffer in grads.buffers.items()}
    return attrs.evolve(grads, buffers=buffers, kept=kept)


def _kept(tree: Draft) -> Draft:
    """Keep each tensor of a draft: itself, and its value."""
    kept: Draft = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            kept[name] = value, lazy_clone(value)
        elif isinstance(value, dict) and name != REPORT:
            kept[name] = _kept(value)
    return kept


def _put_back(bad: Tensor, tree: Draft, before: Draft) -> None:
    """Choose anew what is not what it was."""
    for name, kept in before.items():
        new = tree[name]
        if isinstance(kept, dict):
            _put_back(bad, new, kept)
            continue
        leaf, old = kept
        # What was not written into still shares its memory.  (Not by versions: fused kernels do not count them.)
        if new is not leaf or is_abstract(new) or not _C._is_cow_tensor(new):
            tree[name] = choose(bad, old, new)


def _multiply(tensors: Iterable[Tensor], factor: Tensor | None) -> Tensor:
    """Multiply in place, and tell whether anything is not finite."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        kinds.setdefault((real.device, real.dtype), []).append(real)
    found: dict[torch.device, Tensor] = {}
    for (device, _), alike in kinds.items():
        seen = found.setdefault(device, torch.zeros((), dtype=torch.float32, device=device))
        times = torch.ones((), dtype=torch.float32, device=device) if factor is None else factor.to(device)
        torch._amp_foreach_non_finite_check_and_unscale_(alike, seen, times)
    first, *rest = found.values()
    return sum((other.to(first.device) for other in rest), first) != 0
