"""Gradients that may be written into: each in memory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from sys import getrefcount

import torch
from torch import Tensor

_storage_uses = torch._C._storage_Use_Count
_MINE = 3  # references to a tensor in a list that is walked over: the list's, the loop's, that of the question itself
_ALONE = 2  # uses of a storage: the tensor's, and that of the question itself


def let_go(grads: Sequence[Tensor]) -> list[Tensor]:
    """Make lazy clones of gradients that somebody else holds: writes into them then reach nobody.

    A backward function of one's own may give back what it was given, a batch or a weight, as `x` is here.

    Args:
        grads: as the engine returned them; nobody else in here may hold them yet.

    >>> x = torch.ones(2)
    >>> (mine,) = let_go((x,))
    >>> mine.mul_(3).tolist(), x.tolist()
    ([3.0, 3.0], [1.0, 1.0])
    """
    return [grad if getrefcount(grad) <= _MINE else torch._lazy_clone(grad) for grad in grads]


def unshared(grads: Sequence[Tensor]) -> list[Tensor]:
    """Copy gradients where writing into one would write into another, or twice into itself.

    The backward pass of `(a + b).sum()` makes one tensor of one element for all of both gradients.

    >>> import torch
    >>> one = torch.ones(2)
    >>> first, second = unshared([one, one])
    >>> first.mul_(3).tolist(), second.tolist(), unshared([one])[0] is one
    ([3.0, 3.0], [1.0, 1.0], True)
    """
    places = [grad.untyped_storage()._cdata for grad in grads]
    if len(set(places)) < len(grads):
        apart = _apart(grads)
        return [grad if apart and not overlaps(grad) else grad.clone() for grad in grads]
    if max(map(_storage_uses, places), default=0) <= _ALONE:
        return [grad.clone() if overlaps(grad) else grad for grad in grads]
    # A storage that has other uses is somebody's: a view of a batch, say.
    mine = [_storage_uses(place) <= _ALONE for place in places]
    return [grad if mine and not overlaps(grad) else grad.clone() for grad, mine in zip(grads, mine, strict=True)]


def _apart(grads: Sequence[Tensor]) -> bool:
    """Tell whether no two lie in one place, though in one piece of memory: parts of a packet that came as a whole."""
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
