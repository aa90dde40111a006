"""Rows: the buffers of several shards as the rows of one matrix of bytes, so that any of them travel as one message."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Rows:
    """Buffers of several shards.

    Attributes:
        like: buffer name -> a tensor of its shape and dtype.
        bytes: uint8, shape [rows, bytes of all buffers].

    >>> rows = Rows.empty({"count": torch.zeros((), dtype=torch.int64)}, 2)
    >>> for row in range(2):
    ...     rows.put(row, {"count": torch.tensor(row + 5)})
    >>> rows.take(0), rows.stacked(range(0, 2))
    ({'count': tensor(5)}, {'count': tensor([5, 6])})
    """

    like: Mapping[str, Tensor]
    bytes: Tensor

    @classmethod
    def empty(cls, like: Mapping[str, Tensor], count: int) -> Rows:
        """Make rows with nothing written into them."""
        size = sum(tensor.nbytes for tensor in like.values())
        device = next((tensor.device for tensor in like.values()), None)
        return cls(like, torch.empty(count, size, dtype=torch.uint8, device=device))

    def put(self, row: int, buffers: Mapping[str, Tensor]) -> None:
        """Write one shard's buffers into its row."""
        if self.like:
            pieces = [buffers[name].reshape(-1).view(torch.uint8) for name in self.like]
            torch.cat(pieces, out=self.bytes[row])

    def take(self, row: int) -> dict[str, Tensor]:
        """Read one shard's buffers, each in memory of its own."""
        return {name: stack[0] for name, stack in self.stacked(range(row, row + 1)).items()}

    def stacked(self, rows: range) -> dict[str, Tensor]:
        """Read several shards' buffers, stacked along a new first dimension."""
        if not self.like:
            return {}
        ends = [*accumulate((tensor.nbytes for tensor in self.like.values()), initial=0)]
        pieces = [self.bytes[rows.start : rows.stop, start:stop] for start, stop in pairwise(ends)]
        return {
            name: piece.clone(memory_format=torch.contiguous_format).view(like.dtype).view(len(rows), *like.shape)
            for (name, like), piece in zip(self.like.items(), pieces, strict=True)
        }
