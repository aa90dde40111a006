"""Foreign: batches that somebody else makes (a plain DataLoader, a list, any iterable), taken as a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import accumulate
from typing import Any

import attrs
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from purerun.batch import size
from purerun.data import slot
from purerun.data.flow import Flow, FlowSession, Seekable
from purerun.data.nest import cut
from purerun.data.place import Position, share
from purerun.data.plan import Bounds, leads_to
from purerun.data.shards import Shards, Share
from purerun.data.source import Session, Source


@attrs.frozen
class Foreign(Source):
    """An iterable of batches, with as much of a Loader's promise as it can give.

    Each epoch's `iter()` is taken with the global generators of torch, numpy and Python at
    (seed, "order", epoch), and each batch is drawn with them at (seed, "batch", epoch, samples
    before it).  So `DataLoader(dataset, shuffle=True)` gives an order that is a function of (seed,
    epoch).  What that does not reach, nobody promises: a sampler with a generator of its own,
    a dataset with a memory, random transforms in a DataLoader's workers (their chance depends on how
    many workers there are, and on where reading began).  Samples are counted by `purerun.batch.size`.

    To go on in the middle of an epoch:

    - a list or tuple of batches begins anywhere;
    - `seek(epoch, position) -> iterator of batches` is asked, if the object has it;
    - `state_dict` and `load_state_dict` are used, if it has them (torchdata's StatefulDataLoader);
      the state of a run then carries a slot "stream";
    - an iterator or generator, which can be run through only once, is refused;
    - anything else is skipped through, with the warning `InexactResume`.

    Attributes:
        batches: the iterable.
        capacity: bytes of the slot "stream".

    >>> import torch
    >>> source = Foreign([torch.arange(3), torch.arange(2)])
    >>> [(len(batch), position[:2]) for batch, position in source.read(seed=0, epoch=0, cursor=1)]
    [(2, (0, 3)), (2, (1, 0))]
    """

    batches: Iterable[Any] | Seekable = attrs.field(eq=id, repr=lambda batches: type(batches).__name__)
    capacity: int = attrs.field(default=slot.CAPACITY, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.batches, Iterable | Seekable):
            raise TypeError(
                f"expected a Loader or an iterable of batches, got {type(self.batches).__name__}; "
                "use purerun.data.Loader for a dataset"
            )

    def __len__(self) -> int:
        """Count the batches of an epoch.

        Raises:
            TypeError: the iterable does not say.
        """
        if isinstance(self.batches, Sized):
            return len(self.batches)
        raise TypeError(f"the number of batches in an epoch is not known: {self!r} has no len()")

    def open(self, seed: int, *, shard: int | range = 0, shards: int = 1) -> Session:
        """Start to read.  Every shard reads all batches, and keeps its own slice of each."""
        if isinstance(self.batches, Sequence):
            return _ListSession(self.batches, shard, shards)
        return FlowSession(self._flow(), seed, shard, shards)

    def after(self, seed: int, epoch: int, cursor: int) -> Position:
        """Say where the next batch leads, without reading it.

        Raises:
            TypeError: it is neither a list nor a DataLoader with a batch_size.
        """
        bounds = Bounds(self._ends())
        place = leads_to(bounds, epoch, cursor) or leads_to(bounds, epoch + 1, 0)
        return place or Position(epoch + 1, 0)

    def slots(self) -> dict[str, Tensor]:
        """Make the slot "stream" if the iterable writes down where it stands."""
        return self._flow().slots()

    def _ends(self) -> Sequence[int]:
        if isinstance(self.batches, Sequence):
            return tuple(accumulate(map(size, self.batches)))
        loader = self.batches
        if isinstance(loader, DataLoader) and loader.batch_size and not isinstance(loader.dataset, IterableDataset):
            samples = len(loader.sampler)  # type: ignore[arg-type]
            ends = list(range(loader.batch_size, samples + 1, loader.batch_size))
            return ends + [samples] * (samples % loader.batch_size > 0 and not loader.drop_last)
        raise TypeError(
            f"only reading can tell where the next batch of {type(loader).__name__} ends; take the positions from "
            "`for batch, position in loader.read(seed, epoch, cursor)`, and `state = position.into(state)`"
        )

    def _flow(self) -> Flow:
        return Flow(
            source=self.batches,
            unit="batch",
            group=1,
            drop_last=False,
            count=size,
            each=_as_it_is,
            join=_slice,
            capacity=self.capacity,
            advice="To go on exactly, and at once, use purerun.data.Loader, or give it seek(epoch, position).",
        )


def as_loader(source: Source | Iterable[Any]) -> Source:
    """Take anything that gives batches as a source: a Loader as it is, all else as `Foreign`.

    Raises:
        TypeError: it cannot be iterated over.

    >>> as_loader([1, 2])
    Foreign(batches=list, capacity=65536)
    """
    return source if isinstance(source, Source) else Foreign(source)


def _as_it_is(item: Any) -> Any:
    return item


def _slice(items: list[Any], _epoch: int, _start: int, shard: int | range, shards: int) -> Any:
    if isinstance(shard, range):
        return Shards.of(items[0], Share(shard, shards))
    if shards == 1:
        return items[0]
    return cut(items[0], *share(0, size(items[0]), shard, shards))


class _ListSession(Session):
    """A list of batches at work: nothing is drawn, loaded or owned."""

    def __init__(self, batches: Sequence[Any], shard: int | range, shards: int) -> None:
        if not batches:
            raise ValueError("expected at least one batch, got an empty list")
        self._batches, self._shard = batches, (shard, shards)

    def read(self, epoch: int, cursor: int, stream: Tensor | None = None) -> Iterator[tuple[Any, Position]]:
        """Read what is left of an epoch: each batch, and the position after it."""
        stop = 0
        for place, batch in enumerate(self._batches, 1):
            start, stop = stop, stop + size(batch)
            if cursor < stop:
                rest = batch if cursor <= start else cut(batch, cursor - start, stop - start)
                last = place == len(self._batches)
                yield _slice([rest], epoch, start, *self._shard), Position(epoch + last, 0 if last else stop)

    def close(self) -> None:
        """Do nothing."""
