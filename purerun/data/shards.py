"""The shards of a global batch: which of them a process reads, and a batch that consists of them."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from purerun import batch as _batch
from purerun.data.nest import mapped


@attrs.frozen
class Share:
    """Which shards of each global batch a process reads.

    Attributes:
        mine: a run of successive shards.
        shards: into how many each global batch is cut.
    """

    mine: range
    shards: int


@attrs.frozen
class Shards:
    """The part of a global batch that a process has read, each shard a batch by itself.

    Attributes:
        parts: the shards that have samples.  The last shards of a small batch have none, and are left out.
        share: which shards they are the first of.
        samples: of the whole global batch.

    >>> import torch
    >>> [part.tolist() for part in Shards.of(torch.arange(5), Share(range(2, 4), 4)).parts]
    [[3], [4]]
    """

    parts: tuple[Any, ...]
    share: Share
    samples: int

    @classmethod
    def of(cls, batch: Any, share: Share) -> Shards:
        """Take a process's share of a whole global batch.

        Raises:
            BatchError: the batch cannot be cut.
        """
        samples = _batch.size(batch)
        busy = range(share.mine.start, min(share.mine.stop, samples))
        whole = share.shards == 1
        cuts = [batch] if whole else _batch.cut(batch, share.shards)
        return cls(tuple(mapped(_aligned, cuts[place]) for place in busy), share, samples)


def _aligned(tensor: Tensor) -> Tensor:
    # On where a tensor begins some kernels' rounding depends: a shard is as if it had been made by itself.
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()
