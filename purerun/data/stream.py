"""Stream: batches of a dataset that can only be iterated over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import attrs
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from purerun.batch import size
from purerun.data import slot
from purerun.data.fetch import BatchTransform, Collate, Fetch, Transform
from purerun.data.flow import Flow, FlowSession, Seekable, Stateful
from purerun.data.loader import check_count
from purerun.data.nest import cut, pinned
from purerun.data.place import Position, share
from purerun.data.plan import Task
from purerun.data.shards import Shards, Share
from purerun.data.source import Session, Source
from purerun.data.workers import leave_signals_to_the_main_process


@attrs.frozen
class Stream(Source):
    """Batches of an iterable of samples (torch's IterableDataset, or anything with `__iter__`).

    Its order is the dataset's own affair.  Each epoch's `iter()` is taken with the global
    generators of torch, numpy and Python at (seed, "order", epoch), and each sample is drawn, and
    transformed, with them at (seed, "sample", epoch, position).  To go on in the middle of an
    epoch, with any batch size:

    - `dataset.seek(epoch, position) -> iterator of samples`: exact, and at once;
    - `dataset.state_dict()` and `load_state_dict(state)`: exact; the state of a run carries a slot
      "stream" of fixed capacity with it (JSON);
    - else what was consumed is loaded and thrown away, with the warning `InexactResume`.

    With `shards`, every process reads all samples and keeps its own.

    Attributes:
        dataset: the iterable of samples.
        batch_size: samples of a global batch.
        drop_last: leave out the last batch of an epoch when it is not full.
        workers: processes; only for a dataset that neither seeks nor keeps a state.  It then
            runs in each of them, and divides itself by `torch.utils.data.get_worker_info`, so the
            order depends on their number, and samples have no keys of their own.
        collate: list of samples -> batch; None for torch's default.
        pin_memory: batches in page-locked memory, where there is an accelerator.
        transform: sample -> sample.
        batch_transform: (batch, chance) -> batch.
        capacity: bytes of the slot "stream".

    >>> [batch.tolist() for batch, _ in Stream(range(5), batch_size=2).read(seed=0, epoch=0, cursor=0)]
    [[0, 1], [2, 3], [4]]
    """

    dataset: Iterable[Any] | Seekable = attrs.field(eq=id, repr=lambda dataset: type(dataset).__name__)
    batch_size: int = attrs.field(kw_only=True)
    drop_last: bool = attrs.field(default=False, kw_only=True)
    workers: int = attrs.field(default=0, kw_only=True)
    collate: Collate | None = attrs.field(default=None, kw_only=True)
    pin_memory: bool = attrs.field(default=False, kw_only=True)
    transform: Transform | None = attrs.field(default=None, kw_only=True)
    batch_transform: BatchTransform | None = attrs.field(default=None, kw_only=True)
    capacity: int = attrs.field(default=slot.CAPACITY, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.dataset, Iterable | Seekable):
            raise TypeError(f"expected a dataset to iterate over, got {type(self.dataset).__name__}; use a Loader")
        check_count("batch_size", self.batch_size, least=1)
        check_count("workers", self.workers, least=0)
        if self.workers and isinstance(self.dataset, Seekable | Stateful):
            raise ValueError(
                f"expected workers=0 for {type(self.dataset).__name__}, which seeks or keeps a state, got "
                f"{self.workers}: its place would be spread over the workers; leave workers out"
            )

    def open(self, seed: int, *, shard: int | range = 0, shards: int = 1) -> Session:
        """Start to read."""
        return FlowSession(self._loaded(seed) if self.workers else self._flow(seed), seed, shard, shards)

    def after(self, seed: int, epoch: int, cursor: int) -> Position:
        """Refuse: a stream does not say how long it is.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "only reading can tell where a stream ends; take the positions from "
            "`for batch, position in stream.read(seed, epoch, cursor)`, and `state = position.into(state)`"
        )

    def slots(self) -> dict[str, Tensor]:
        """Make the slot "stream" if the dataset writes down where it stands."""
        return self._flow(0).slots()

    def _flow(self, seed: int) -> Flow:
        join = _Join(self._fetch(seed), pin_memory=self.pin_memory)
        return Flow(
            source=self.dataset,
            unit="sample",
            group=self.batch_size,
            drop_last=self.drop_last,
            count=_one,
            each=self.transform or _as_it_is,
            join=join.samples,
            capacity=self.capacity,
            advice="To go on exactly, and at once, give the dataset seek(epoch, position).",
        )

    def _loaded(self, seed: int) -> Flow:
        """Read through torch's DataLoader, which gives batches."""
        loader = DataLoader(
            _Transformed(self.dataset, self.transform),
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            num_workers=self.workers,
            collate_fn=self.collate,
            worker_init_fn=leave_signals_to_the_main_process,
            persistent_workers=True,
        )
        join = _Join(self._fetch(seed), pin_memory=self.pin_memory)
        return attrs.evolve(
            self._flow(seed), source=loader, unit="batch", group=1, count=size, each=_as_it_is, join=join.batch
        )

    def _fetch(self, seed: int) -> Fetch:
        return Fetch(None, seed, self.collate, None, self.batch_transform)


@attrs.frozen
class _Join:
    """Makes one shard's batch from what a stream gave for the whole."""

    fetch: Fetch
    pin_memory: bool = attrs.field(kw_only=True)

    def samples(self, samples: list[Any], epoch: int, start: int, shard: int | range, shards: int) -> Any:
        if isinstance(shard, range):
            return _several(partial(self.samples, samples, epoch, start), len(samples), Share(shard, shards))
        low, high = share(0, len(samples), shard, shards)
        task = _task(epoch, start, low, high)
        batch = self.fetch.collated(samples[task.start - start :][: len(task.indices)], task)
        return pinned(batch) if self.pin_memory else batch

    def batch(self, batches: list[Any], epoch: int, start: int, shard: int | range, shards: int) -> Any:
        if isinstance(shard, range):
            return _several(partial(self.batch, batches, epoch, start), size(batches[0]), Share(shard, shards))
        low, high = share(0, size(batches[0]), shard, shards)
        task = _task(epoch, start, low, high)
        first = task.start - start
        batch = self.fetch.finished(cut(batches[0], first, first + len(task.indices)), task)
        return pinned(batch) if self.pin_memory else batch


def _several(one: Callable[[int, int], Any], samples: int, share: Share) -> Shards:
    """Make the shards that have samples, each as a batch by itself."""
    busy = range(share.mine.start, min(share.mine.stop, samples))
    return Shards(tuple(one(shard, share.shards) for shard in busy), share, samples)


def _task(epoch: int, start: int, low: int, high: int) -> Task:
    # An empty share shows the first sample, for the structure of a batch.
    first, last = (0, 1) if low == high else (low, high)
    return Task(epoch, start + first, np.arange(start + first, start + last), low == high)


class _Transformed(IterableDataset[Any]):
    """A dataset in a worker, with its transform."""

    def __init__(self, dataset: Any, transform: Transform | None) -> None:
        self._dataset, self._transform = dataset, transform

    def __iter__(self) -> Iterator[Any]:
        return map(self._transform or _as_it_is, self._dataset)


def _one(_sample: Any) -> int:
    return 1


def _as_it_is(sample: Any) -> Any:
    return sample
