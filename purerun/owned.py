"""Gradients that may be written into: each in memory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from sys import getrefcount

import torch
from torch import Tensor

_MINE = 3  # references to a tensor in a list that is walked over: the list's, the loop's, that of the question itself
_ALONE = 2  # uses of a storage: the tensor's, that of the question itself


def let_go(grads: Sequence[Tensor]) -> list[Tensor]:
    """Make lazy clones of gradients that somebody else holds: writes into them then reach nobody.

    A backward function of one's own, or a hook, may give back what it was given, a batch or a weight, as `x` is here.
    That it lies in the memory of such a tensor (`x.detach()`, `x.view(-1)`) is looked at by who writes: `unshared`.

    Args:
        grads: as the engine returned them; nobody else in here may hold them yet.

    >>> x = torch.ones(2)
    >>> (mine,) = let_go((x,))
    >>> mine.mul_(3).tolist(), x.tolist()
    ([3.0, 3.0], [1.0, 1.0])
    """
    return [grad if getrefcount(grad) <= _MINE else torch._lazy_clone(grad) for grad in grads]


def unshared(grads: Sequence[Tensor]) -> list[Tensor]:
    """Copy gradients where writing into one would write into another, twice into itself, or into somebody's memory.

    The backward pass of `(a + b).sum()` makes one tensor of one element for all of both gradients.  Not seen is
    memory that others than torch know of (`torch.from_numpy(x.numpy())`).

    >>> import torch
    >>> one = torch.ones(2)
    >>> first, second = unshared([one, one])
    >>> first.mul_(3).tolist(), second.tolist(), unshared([one])[0] is one
    ([3.0, 3.0], [1.0, 1.0], True)
    """
    places = [grad.untyped_storage()._cdata for grad in grads]
    if len(set(places)) == len(grads):
        return [
            grad if _is_alone(grad, place) and not overlaps(grad) else grad.clone()
            for grad, place in zip(grads, places, strict=True)
        ]
    apart = _apart(grads)
    return [grad if apart and not overlaps(grad) else grad.clone() for grad in grads]


def _is_alone(grad: Tensor, place: int) -> bool:
    """Tell whether nobody else holds the memory of a gradient; layers make views of tensors that nobody does."""
    uses = torch._C._storage_Use_Count(place)
    return uses <= _ALONE or (uses == _ALONE + 1 and grad._base is not None and _holders(grad) <= _NOBODY)


def _holders(view: Tensor) -> int:
    base = view._base
    return getrefcount(base)


_NOBODY = _holders(torch.ones(1).view(1))  # how many references there are to the base of a view that nobody holds


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
