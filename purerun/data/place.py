"""Where a run stands in its data: finished epochs, and samples consumed in the current one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor


class Replaceable(Protocol):
    """What a position can be written into: a State."""

    def replace(self, changes: Mapping[str, Any]) -> Any:
        """Make a state in which some entries are others."""


StateLike = TypeVar("StateLike", bound=Replaceable)


class Position(NamedTuple):
    """A place in the data, in normal form: an epoch's last batch leads to `(epoch + 1, 0)`.

    Attributes:
        epoch: finished epochs.
        cursor: samples of the epoch's global order that are consumed.
        stream: what a source with `state_dict` says about itself, packed: uint8, shape
            [capacity].  None for all other sources.

    >>> Position(2, 640)
    Position(epoch=2, cursor=640, stream=None)
    """

    epoch: int
    cursor: int
    stream: Tensor | None = None

    def into(self, state: StateLike) -> StateLike:
        """Make the state that stands at this place."""
        slot = {} if self.stream is None else {"stream": self.stream}
        return state.replace({"epoch": self.epoch, "cursor": self.cursor, **slot})


def share(start: int, stop: int, shard: int, shards: int) -> tuple[int, int]:
    """Find the part of a global batch that belongs to one shard.

    The slices are contiguous and in the order of the shards; their sizes differ by one at
    most, larger ones first, so there may be empty ones.

    >>> [share(10, 15, shard, 3) for shard in range(3)]
    [(10, 12), (12, 14), (14, 15)]
    """
    size, larger = divmod(stop - start, shards)
    low = start + shard * size + min(shard, larger)
    return low, low + size + (shard < larger)
