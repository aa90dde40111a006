"""Plans: how an epoch's order is cut into batches, as tasks that any process can carry out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from purerun.data.order import Order, Reader
from purerun.data.place import Position, share

_BLOCK = 8192


class Task(NamedTuple):
    """One batch to make.

    Attributes:
        epoch: which epoch.
        start: position of its first sample in the epoch's order.
        indices: the samples at `start` and after; never empty.
        empty: the slice has no sample; `indices` shows one, for the batch's structure.
    """

    epoch: int
    start: int
    indices: NDArray[np.int64]
    empty: bool


class Plan(NamedTuple):
    """What one process makes of one global batch.

    Attributes:
        tasks: its shards of the batch; those without a sample are left out where several were asked for.
        samples: of the global batch.
        position: the place in the data after it.
    """

    tasks: tuple[Task, ...]
    samples: int
    position: Position


class Epoch(ABC):
    """One epoch, cut into batches."""

    @abstractmethod
    def stop(self, start: int) -> int | None:
        """Say where the batch that begins at a position ends; None where none begins."""

    @abstractmethod
    def length(self) -> int | None:
        """Count its positions; None when it never ends."""

    @abstractmethod
    def reader(self) -> Reader:
        """Prepare to look indices up."""


@attrs.frozen
class Even(Epoch):
    """Batches of one size, from wherever reading begins."""

    order: Order
    seed: int
    epoch: int
    size: int
    batch_size: int
    drop_last: bool

    def stop(self, start: int) -> int | None:
        """Say where the batch that begins at a position ends; None where none begins."""
        length, full = self.length(), start + self.batch_size
        if length is None or full <= length:
            return full
        return None if self.drop_last or start >= length else length

    def length(self) -> int | None:
        """Count its positions; None when it never ends."""
        return self.order.length(self.size)

    def reader(self) -> Reader:
        """Prepare to look indices up."""
        return self.order.reader(self.seed, self.epoch, self.size)


class Given(Epoch):
    """Batches as somebody drew them up; reading from the middle of one begins with its rest."""

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self._batches = batches
        self._bounds = Bounds(tuple(accumulate(map(len, batches))))

    def stop(self, start: int) -> int | None:
        """Say where the batch that begins at a position ends; None where none begins."""
        return self._bounds.stop(start)

    def length(self) -> int:
        """Count its positions."""
        return self._bounds.ends[-1] if self._bounds.ends else 0

    def reader(self) -> Reader:
        """Prepare to look indices up."""
        indices = torch.tensor(
            [int(index) for batch in self._batches for index in batch], dtype=torch.int64, device="cpu"
        )
        return lambda start, stop: indices[start:stop]


@attrs.frozen
class Bounds:
    """Where the batches of an epoch end, in ascending order."""

    ends: Sequence[int]

    def stop(self, start: int) -> int | None:
        """Say where the batch that holds a position ends; None beyond the last one.

        >>> Bounds((4, 8, 10)).stop(5), Bounds((4, 8, 10)).stop(10)
        (8, None)
        """
        which = bisect_right(self.ends, start)
        return self.ends[which] if which < len(self.ends) else None


def leads_to(cuts: Epoch | Bounds, epoch: int, cursor: int) -> Position | None:
    """Find the position after the batch that begins at `cursor`; None where none begins."""
    stop = cuts.stop(cursor)
    if stop is None:
        return None
    return Position(epoch + 1, 0) if cuts.stop(stop) is None else Position(epoch, stop)


def plans(cuts: Epoch, epoch: int, cursor: int, shard: int | range, shards: int) -> Iterator[Plan]:
    """Plan what is left of an epoch: the tasks of one shard or of several, and the global position after each batch."""
    read = _Blocks(cuts)
    start, stop = cursor, cuts.stop(cursor)
    while stop is not None:
        following = cuts.stop(stop)
        position = Position(epoch + 1, 0) if following is None else Position(epoch, stop)
        yield Plan(tuple(_tasks(read, epoch, start, stop, shard, shards)), stop - start, position)
        start, stop = stop, following


def _tasks(read: _Blocks, epoch: int, start: int, stop: int, shard: int | range, shards: int) -> Iterator[Task]:
    for which in (shard,) if isinstance(shard, int) else range(shard.start, min(shard.stop, stop - start)):
        low, high = share(start, stop, which, shards)
        first, last = (start, start + 1) if low == high else (low, high)
        yield Task(epoch, first, read(first, last), low == high)


class _Blocks:
    """Reads an epoch's indices many at once, which hides the fixed cost of torch's operations."""

    def __init__(self, cuts: Epoch) -> None:
        self._read, self._length = cuts.reader(), cuts.length()
        self._start, self._block = 0, np.empty(0, np.int64)

    def __call__(self, start: int, stop: int) -> NDArray[np.int64]:
        # Tasks come in the order of their positions, so nothing before the block is asked for.
        if stop > self._start + len(self._block):
            end = start + _BLOCK if self._length is None else min(start + _BLOCK, self._length)
            self._start, self._block = start, self._read(start, max(stop, end)).numpy()
        return self._block[start - self._start : stop - self._start]
