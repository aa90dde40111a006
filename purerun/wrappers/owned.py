"""Gradients that may be written into: each in memory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
    apart = _apart(grads)
    return [grad if apart and not overlaps(grad) else grad.clone() for grad in grads]


def _apart(grads: Sequence[Tensor]) -> bool:
    """Tell whether no two lie in one piece of memory; parts of a packet that came as a whole do not."""
    if len({grad.untyped_storage()._cdata for grad in grads}) == len(grads):
        return True
    if not all(grad.is_contiguous() for grad in grads):
        return False
    places = sorted((grad.data_ptr(), grad.data_ptr() + grad.nbytes) for grad in grads)
    return all(end <= start for (_, end), (start, _) in pairwise(places))


def overlaps(grad: Tensor) -> bool:
    """Tell whether elements of a tensor lie in one place, as those of an expanded one do.

    >>> import torch
    >>> overlaps(torch.ones(1).expand(3)), overlaps(torch.ones(2, 3).t())
    (True, False)
    """
    return not grad.is_contiguous() and 0 in grad.stride()
