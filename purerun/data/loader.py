"""The Loader: batches of a dataset with random access, from any position of any seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain, islice, tee
from typing import Any, Protocol, runtime_checkable

import attrs
from torch import Tensor
from torch.utils.data import IterableDataset

from purerun.data.fetch import BatchTransform, Collate, Fetch, Transform
from purerun.data.nest import pinned
from purerun.data.order import Order, Sequential, Shuffle
from purerun.data.place import Position
from purerun.data.plan import Epoch, Even, Given, Plan, Task, leads_to, plans
from purerun.data.shards import Shards, Share
from purerun.data.source import Session, Source
from purerun.data.tensors import InMemory
from purerun.data.workers import Workers
from purerun.random import Key, keyed_everywhere


@runtime_checkable
class Batches(Protocol):
    """A value that draws up the batches of an epoch: a pure function of its arguments."""

    def batches(self, seed: int, epoch: int, size: int) -> Sequence[Sequence[int]]:
        """List the indices of each batch."""


def _identity(dataset: Any) -> Any:
    # Values compare as values; of other datasets we only know whether they are the same object.
    return dataset if attrs.has(type(dataset)) else id(dataset)


def _short(dataset: Any) -> str:
    if attrs.has(type(dataset)):
        return repr(dataset)
    return f"{type(dataset).__name__}[{len(dataset) if isinstance(dataset, Sized) else '?'}]"


@attrs.frozen
class Loader(Source):
    """Batches of a dataset with `len(dataset)` and `dataset[index]`.

    The order of an epoch is a function of (seed, epoch), a sample's augmentation one of (seed,
    epoch, position in that order): neither depends on workers, prefetching, batch size or where
    reading began.  Inside `dataset[index]`, `transform` and `collate` the global generators of
    torch, numpy and Python's `random` stand at a key made of these, so random transforms of
    others are pure here too; outside, nothing can tell that they were used.  Generators that a
    dataset keeps to itself are out of reach: let it make them anew from `torch.initial_seed()` for
    each sample.  `dataset[index]` may be asked twice, to find out what it draws from.

    A dataset of tensors (`Tensors`, `Digits`) is read a whole batch at a time when there is
    neither `transform` nor `collate`; it needs no workers.

    Attributes:
        dataset: what to read.
        batch_size: samples of a global batch.  It may change between any two iterations of a
            run: reading goes on at the sample where it stopped.
        shuffle: a new permutation in every epoch; short for `order=Shuffle()`.
        order: which sample stands where; sequential unless given.
        drop_last: leave out the last batch of an epoch when it is not full.
        workers: processes that make batches; 0 makes them in this one.
        collate: list of samples -> batch; None for torch's default.
        pin_memory: batches in page-locked memory, where there is an accelerator.
        persistent: keep the workers from epoch to epoch of a session.
        prefetch: batches in work ahead, for each worker.
        batch_sampler: draws the batches up, instead of batch_size and order: a value with
            `batches(seed, epoch, size)`.  Any re-iterable of index lists (torch's BatchSampler)
            is taken too, with a weaker promise: it is run through at each epoch's start with
            the global generators at (seed, "order", epoch), and must draw from nothing else.
            Reading from the middle of a batch begins with its rest.
        transform: sample -> sample.
        batch_transform: (batch, chance) -> batch; see `purerun.data.Chance` and `Augment`.

    Raises:
        TypeError, ValueError: fields that contradict each other; each says what to do.

    >>> from purerun.data import Tensors
    >>> import torch
    >>> loader = Loader(Tensors(x=torch.arange(5)), batch_size=2)
    >>> for batch, position in loader.read(seed=0, epoch=0, cursor=2):
    ...     print(batch["x"].tolist(), position[:2])
    [2, 3] (0, 4)
    [4] (1, 0)
    """

    dataset: Any = attrs.field(eq=_identity, repr=_short)
    batch_size: int | None = attrs.field(default=None, kw_only=True)
    shuffle: bool = attrs.field(default=False, kw_only=True)
    order: Order | None = attrs.field(default=None, kw_only=True)
    drop_last: bool = attrs.field(default=False, kw_only=True)
    workers: int = attrs.field(default=0, kw_only=True)
    collate: Collate | None = attrs.field(default=None, kw_only=True)
    pin_memory: bool = attrs.field(default=False, kw_only=True)
    persistent: bool = attrs.field(default=True, kw_only=True)
    prefetch: int = attrs.field(default=2, kw_only=True)
    batch_sampler: Batches | Iterable[Sequence[int]] | None = attrs.field(default=None, kw_only=True, eq=_identity)
    transform: Transform | None = attrs.field(default=None, kw_only=True)
    batch_transform: BatchTransform | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_dataset(self.dataset)
        if self.batch_sampler is None:
            check_count("batch_size", self.batch_size, least=1)
        elif self.batch_size is not None or self.shuffle or self.order is not None or self.drop_last:
            raise ValueError(
                "expected batch_sampler alone, got it with batch_size, shuffle, order or drop_last; leave these out"
            )
        if self.shuffle and self.order is not None:
            raise ValueError(f"expected shuffle or order, got both (order={self.order!r}); leave one out")
        if not isinstance(self.order, Order | None):
            raise TypeError(f"expected an Order of purerun.data, got {type(self.order).__name__} as order")
        check_count("workers", self.workers, least=0)
        check_count("prefetch", self.prefetch, least=1)

    def __len__(self) -> int:
        """Count the batches of an epoch.

        Raises:
            TypeError: the epoch never ends, or the batch sampler does not say.
        """
        if isinstance(self.batch_sampler, Sized):
            return len(self.batch_sampler)
        length = None if self.batch_sampler is not None else self._order().length(self._size())
        if length is None or self.batch_size is None:
            raise TypeError(f"the number of batches in an epoch is not known: {self.batch_sampler or self.order!r}")
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def open(self, seed: int, *, shard: int | range = 0, shards: int = 1) -> Session:
        """Start to read: a session that owns the workers.

        Raises:
            ValueError: the dataset is empty, too small for one full batch, or there is no such shard.
        """
        several = isinstance(shard, range)
        if not (0 <= shard.start < shard.stop <= shards if several else 0 <= shard < shards):
            raise ValueError(f"expected a shard in [0, {shards}), got {shard}")
        if self._size() == 0:
            raise ValueError(f"expected a dataset with samples, got an empty one: {_short(self.dataset)}")
        return _Reading(self, seed, shard, shards)

    def after(self, seed: int, epoch: int, cursor: int) -> Position:
        """Say where the next batch leads, without reading it.

        >>> Loader([1, 2, 3], batch_size=2).after(seed=0, epoch=0, cursor=2)
        Position(epoch=1, cursor=0, stream=None)
        """
        place = leads_to(self.epoch(seed, epoch, cursor), epoch, cursor)
        place = place or leads_to(self.epoch(seed, epoch + 1, 0), epoch + 1, 0)
        return place or Position(epoch + 1, 0)

    def epoch(self, seed: int, epoch: int, cursor: int) -> Epoch:
        """Cut one epoch into batches.

        Raises:
            ValueError: the cursor lies outside of the epoch, or the epoch has no batch.
        """
        size = self._size()
        if self.batch_sampler is None:
            cuts: Epoch = Even(self._order(), seed, epoch, size, self.batch_size or 1, self.drop_last)
        else:
            cuts = Given(self._batches(seed, epoch, size))
        length = cuts.length()
        if epoch < 0 or cursor < 0 or (length is not None and cursor > length):
            raise ValueError(
                f"expected a position inside of an epoch of {length} samples, got epoch {epoch}, cursor {cursor}; "
                "the state belongs to another dataset"
            )
        if cuts.stop(0) is None:
            raise ValueError(
                f"expected an epoch with at least one batch, got none from {self!r}; "
                "lower batch_size, or keep the last batch (drop_last=False)"
            )
        return cuts

    def fetch(self, seed: int) -> Fetch:
        """Prepare the function that makes batches."""
        dataset = self.dataset.tensors() if isinstance(self.dataset, InMemory) else self.dataset
        return Fetch(dataset, seed, self.collate, self.transform, self.batch_transform)

    def _order(self) -> Order:
        return self.order or (Shuffle() if self.shuffle else Sequential())

    def _size(self) -> int:
        return len(self.dataset)

    def _batches(self, seed: int, epoch: int, size: int) -> Sequence[Sequence[int]]:
        if isinstance(self.batch_sampler, Batches):
            return self.batch_sampler.batches(seed, epoch, size)
        with keyed_everywhere(Key.of(seed, "order", epoch)):
            return list(self.batch_sampler or ())


class _Reading(Session):
    """A Loader at work."""

    def __init__(self, loader: Loader, seed: int, shard: int | range, shards: int) -> None:
        self._loader, self._seed, self._shard = loader, seed, (shard, shards)
        self._fetch = loader.fetch(seed)
        self._pool = self._hired() if loader.workers else None
        self._turn: object = None
        self._closed = False

    def _hired(self) -> Workers:
        loader = self._loader
        return Workers(
            self._fetch,
            count=loader.workers,
            prefetch=loader.prefetch,
            persistent=loader.persistent,
            pin_memory=loader.pin_memory,
        )

    def read(self, epoch: int, cursor: int, stream: Tensor | None = None) -> Iterator[tuple[Any, Position]]:
        """Read what is left of an epoch: each batch, and the position after it."""
        if self._closed:
            raise RuntimeError("expected an open session, got a closed one; open the loader again")
        turn = self._turn = object()
        ahead, behind = tee(plans(self._loader.epoch(self._seed, epoch, cursor), epoch, cursor, *self._shard))
        made = self._made(chain.from_iterable(plan.tasks for plan in ahead))
        for batch, position in self._joined(made, behind):
            yield batch, position
            if self._turn is not turn:
                raise RuntimeError("expected one reader at a time, but this session was closed or reads another epoch")

    def close(self) -> None:
        """Stop the workers."""
        if self._pool is not None:
            self._pool.close()
        self._pool, self._turn, self._closed = None, None, True

    def _joined(self, made: Iterator[Any], plans: Iterator[Plan]) -> Iterator[tuple[Any, Position]]:
        shard, shards = self._shard
        if isinstance(shard, int):
            # The batches come first: a zip that ends there lets the workers see that the epoch is over.
            yield from ((batch, plan.position) for batch, plan in zip(made, plans, strict=False))
            return
        share = Share(shard, shards)
        for plan in plans:
            yield Shards(tuple(islice(made, len(plan.tasks))), share, plan.samples), plan.position
        next(made, None)  # lets the workers see that the epoch is over

    def _made(self, upcoming: Iterator[Task]) -> Iterator[Any]:
        if self._pool is not None:
            return self._pool.batches(upcoming)
        made = map(self._fetch.guarded, upcoming)
        return map(pinned, made) if self._loader.pin_memory else made


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"expected a dataset with random access, got the IterableDataset {type(dataset).__name__}; "
            "use purerun.data.Stream"
        )
    if not isinstance(dataset, Sized):
        raise TypeError(
            f"expected a dataset with len(dataset) and dataset[index], got {type(dataset).__name__}; "
            "give it a __len__, or use purerun.data.Stream"
        )


def check_count(name: str, value: Any, *, least: int) -> None:
    """Check that a field is a whole number, large enough.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {name} to be a whole number >= {least}, got {value!r}")
