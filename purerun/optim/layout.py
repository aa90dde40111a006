"""What a fused kernel needs: tensors of one memory layout.

The kernels read raw memory and look at no strides.  `loss.backward()` lays a gradient out as
its parameter; `torch.autograd.grad` does not, so that a kernel would take a transposed or
expanded gradient for another one, without an error.
"""

from __future__ import annotations

from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

Lists = TypeVar("Lists", bound=tuple[list[Tensor], ...])
"""Parameters, gradients, then slots: lists of equal length, or empty ones."""

_contiguous = Tensor.is_contiguous


def aligned(tensors: Lists) -> Lists:
    """Lay gradients and slots out as their parameters; the same tuple if they are already.

    >>> param, grad = torch.zeros(2, 3), torch.arange(6.0).reshape(3, 2).t()
    >>> aligned(([param], [grad]))[1][0].stride()
    (3, 1)
    >>> tensors = [param], [param + 1]
    >>> aligned(tensors) is tensors
    True
    """
    if all(map(_contiguous, chain(*tensors))):
        return tensors
    if any(tensor.layout is not torch.strided for tensor in chain(*tensors)):
        return tensors  # sparse: no kernel takes these, and says so
    models = [_dense(param) for param in tensors[0]]
    return tuple(  # type: ignore[return-value]
        [one if one.stride() == model.stride() else _copy(one, model) for one, model in zip(some, models, strict=True)]
        if some
        else some
        for some in tensors
    )


def settle(tensors: Lists, laid: Lists) -> None:
    """Copy what a kernel wrote back to where it belongs."""
    for place, (some, others) in enumerate(zip(tensors, laid, strict=True)):
        if place == 1:
            continue  # gradients are only read
        for one, other in zip(some, others, strict=True):
            if one is not other:
                one.copy_(other)


def _dense(param: Tensor) -> Tensor:
    """Return the parameter, or where it has holes or overlaps an empty tensor without."""
    return param if torch.ops.aten.is_non_overlapping_and_dense(param) else torch.empty_like(param)


def _copy(tensor: Tensor, model: Tensor) -> Tensor:
    return torch.empty_strided(model.shape, model.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
