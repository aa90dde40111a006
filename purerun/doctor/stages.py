"""Stages: the functions that make batches, each by itself, on what the stage before it has given once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import attrs
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from purerun.data import Foreign, Loader, Source, Stream
from purerun.data.fetch import Fetch
from purerun.data.plan import Task, plans
from purerun.random import Key, keyed_everywhere

SAMPLES = 8
"""Samples that each stage is examined on."""


@attrs.frozen
class Stage:
    """One of the functions that make batches.

    Attributes:
        part: its path in the recipe.
        act: calls it, with the same input and at the same key each time.
        function: the function or object itself.
    """

    part: str
    act: Callable[[], Any]
    function: Any


@attrs.frozen
class _Recorded:
    """Samples that were read once: a copy of each, as often as it is asked for."""

    samples: list[Any]

    def __getitem__(self, index: int) -> Any:
        return copied(self.samples[index])


def copied(value: Any) -> Any:
    """Copy something to be written into; what cannot be copied is itself."""
    try:
        return copy.deepcopy(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def stages(part: str, source: Source, seed: int) -> Iterator[Stage]:
    """List the stages of a source; each must run through before the next is asked for.

    >>> loader = pr.Loader([1, -2, 3], batch_size=2, transform=abs, shuffle=True)
    >>> [(stage.part, stage.act()) for stage in stages("train", loader, seed=0)]
    [('train.dataset', [1, -2, 3]), ('train.transform', [1, 2, 3])]
    """
    if isinstance(source, Loader):
        yield from _order(part, source, seed)
        yield from _chain(part, _by_index(source.dataset, seed), source.dataset, source, seed)
    elif isinstance(source, Stream):
        yield from _chain(part, _head(source, seed), source.dataset, source, seed)
    elif (inner := map_style(source)) is not None:
        collate = inner.collate_fn if inner.batch_size else None
        made = Loader(inner.dataset, batch_size=SAMPLES, collate=collate)
        yield from _chain(part, _by_index(made.dataset, seed), made.dataset, made, seed)


def map_style(source: Source) -> DataLoader[Any] | None:
    """Find the DataLoader in a source whose dataset has random access; None if there is none."""
    inner = source.batches if isinstance(source, Foreign) else None
    return inner if isinstance(inner, DataLoader) and not isinstance(inner.dataset, IterableDataset) else None


def _order(part: str, loader: Loader, seed: int) -> Iterator[Stage]:
    """List what draws up the batches, unless it is ours."""
    drawn = loader.order if loader.batch_sampler is None else loader.batch_sampler
    if drawn is None or type(drawn).__module__.startswith("purerun."):
        return

    def act() -> list[Any]:
        epochs = (plans(loader.epoch(seed, epoch, 0), epoch, 0, 0, 1) for epoch in (0, 1))
        return [task.indices for batches in epochs for plan in islice(batches, SAMPLES) for task in plan.tasks]

    yield Stage(f"{part}.{'order' if loader.batch_sampler is None else 'batch_sampler'}", act, drawn)


def _by_index(dataset: Any, seed: int) -> Callable[[], Any]:
    """Make the function that reads the first samples of a dataset, each at its key."""
    held = Loader(dataset, batch_size=1).fetch(seed).dataset
    return _made(Fetch(held, seed, collate=list), min(len(dataset), SAMPLES))


def _head(stream: Stream, seed: int) -> Callable[[], Any]:
    """Make the function that reads the first samples of a stream, each at its key."""
    plain = attrs.evolve(
        stream, batch_size=SAMPLES, workers=0, drop_last=False, collate=list, transform=None, batch_transform=None
    )
    return lambda: next(batch for batch, _ in plain.read(seed, 0, 0))


def _chain(part: str, read: Callable[[], Any], dataset: Any, source: Loader | Stream, seed: int) -> Iterator[Stage]:
    """List the making of samples, then what is done to each, then what is done to all of them."""
    if not type(dataset).__module__.startswith("purerun."):
        yield Stage(f"{part}.dataset", read, dataset)
    if not (source.transform or source.collate or source.batch_transform):
        return
    samples = read()
    count = len(samples)
    if source.transform is not None:
        read = _made(Fetch(_Recorded(samples), seed, collate=list, transform=source.transform), count)
        yield Stage(f"{part}.transform", read, source.transform)
        samples = read()
    read = _made(Fetch(_Recorded(samples), seed, collate=source.collate), count)
    if source.collate is not None:
        yield Stage(f"{part}.collate", read, source.collate)
    if source.batch_transform is not None:
        last = Fetch(None, seed, batch_transform=source.batch_transform)
        yield Stage(f"{part}.batch_transform", _finished(last, read(), count), source.batch_transform)


def _task(count: int) -> Task:
    return Task(epoch=0, start=0, indices=np.arange(count), empty=False)


def _made(fetch: Fetch, count: int) -> Callable[[], Any]:
    return lambda: fetch.guarded(_task(count))


def _finished(fetch: Fetch, batch: Any, count: int) -> Callable[[], Any]:
    def act() -> Any:
        with keyed_everywhere(Key.of(fetch.seed, "batch", 0, 0)):
            return fetch.finished(copied(batch), _task(count))

    return act
