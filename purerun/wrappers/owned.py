"""Gradients that may be written into: each in memory of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def unshared(grads: Sequence[Tensor]) -> list[Tensor]:
    """Copy gradients where writing into one would write into another, or twice into itself.

    The backward pass of `(a + b).sum()` makes one tensor of one element for all of both gradients.

    >>> import torch
    >>> one = torch.ones(2)
    >>> first, second = unshared([one, one])
    >>> first.mul_(3).tolist(), second.tolist(), unshared([one])[0] is one
    ([3.0, 3.0], [1.0, 1.0], True)
    """
    apart = len({grad.untyped_storage()._cdata for grad in grads}) == len(grads)
    return [grad if apart and not overlaps(grad) else grad.clone() for grad in grads]


def overlaps(grad: Tensor) -> bool:
    """Tell whether elements of a tensor lie in one place, as those of an expanded one do.

    >>> import torch
    >>> overlaps(torch.ones(1).expand(3)), overlaps(torch.ones(2, 3).t())
    (True, False)
    """
    return not grad.is_contiguous() and 0 in grad.stride()
