"""Memory for gradients, used again as soon as nobody holds it: new pages cost as much as writing into them."""

from __future__ import annotations

import torch
from torch import Tensor

# So many sizes, and pieces of one size, are kept; more are in use at once only if somebody keeps gradients.
_MOST = 4
_KEPT: dict[int, list[Tensor]] = {}


def memory(size: int, device: torch.device) -> Tensor:
    """Take so many bytes, with anything in them.

    What was taken before comes again only when no tensor, and no view of one, is left on it.

    >>> first = memory(256, torch.device("cpu"))[:3]
    >>> second = memory(256, torch.device("cpu"))
    >>> first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    False
    """
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)  # whose allocator keeps pages by itself
    # Taken out while it is looked at, so that no other thread takes it too.
    kept = _KEPT.pop(size, [])
    found = next((place for place, piece in enumerate(kept) if _is_free(piece)), None)
    piece = torch.empty(size, dtype=torch.uint8, device=device) if found is None else kept.pop(found)
    _KEPT[size] = [*kept, piece][-_MOST:]
    while len(_KEPT) > _MOST:
        _KEPT.pop(next(iter(_KEPT)), None)
    return piece.view(-1)


def _is_free(piece: Tensor) -> bool:
    # Two hold it: the piece itself, and the storage object made here to ask.
    return torch._C._storage_Use_Count(piece.untyped_storage()._cdata) == 2
