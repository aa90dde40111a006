"""Gradients that may be written into: each in memory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from sys import getrefcount

import torch
from torch import Tensor
from torch.autograd import Function

_MINE = 3  # references to a tensor in a list that is walked over: the list's, the loop's, that of the question itself
_ALONE = 2  # uses of a storage: the tensor's, that of the question itself
_seen = {"kinds": 0, "own": False}


def let_go(grads: Sequence[Tensor]) -> list[Tensor]:
    """Make lazy clones of gradients that somebody else holds: writes into them then reach nobody.

    A backward function of one's own may give back what it was given, a batch or a weight, as `x` is here, or its
    memory by another name (`x.detach()`, `x.view(-1)`); torch's own never do.  Not seen is memory that is
    known to others than torch alone (`torch.from_numpy(x.numpy())`).

    Args:
        grads: as the engine returned them; nobody else in here may hold them yet.

    >>> x = torch.ones(2)
    >>> (mine,) = let_go((x,))
    >>> mine.mul_(3).tolist(), x.tolist()
    ([3.0, 3.0], [1.0, 1.0])
    """
    if _has_own_functions():
        return [torch._lazy_clone(grad) if getrefcount(grad) > _MINE or _shows(grad) else grad for grad in grads]
    return [torch._lazy_clone(grad) if getrefcount(grad) > _MINE else grad for grad in grads]


def _has_own_functions() -> bool:
    """Tell whether anybody but torch has made a `torch.autograd.Function`: to look at memory takes long for many."""
    kinds = Function.__subclasses__()
    if len(kinds) != _seen["kinds"]:
        own = any(not kind.__module__.startswith("torch.") for kind in kinds)
        _seen.update(kinds=len(kinds), own=own)
    return bool(_seen["own"])


def _shows(grad: Tensor) -> bool:
    """Tell whether a gradient lies in memory that somebody holds; layers make views of tensors that nobody does."""
    if not torch._C._has_storage(grad):  # a sparse one
        return False
    own = _ALONE + (grad._base is not None and _holders(grad) <= _NOBODY)
    return torch._C._storage_Use_Count(grad.untyped_storage()._cdata) > own


def _holders(view: Tensor) -> int:
    base = view._base
    return getrefcount(base)


_NOBODY = _holders(torch.ones(1).view(1))  # how many references there are to the base of a view that nobody holds


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
