"""A recipe cut short: small batches, few of them to validate on, and a training loop of a few iterations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import attrs
from torch import Tensor

from purerun.data import Loader, Position, Session, Source, Stream
from purerun.hooks import Every
from purerun.hooks.when import Any as AnyOf
from purerun.recipe import Recipe
from purerun.state import State

# Samples of a batch: enough for batch norms, few enough for large models on a CPU.
_LARGEST, _SMALLEST = 16, 8

# Batches of validation data that are read.
_JUDGED = 2


@attrs.frozen
class Head(Source):
    """The first batches of each epoch of a source.

    Attributes:
        source: what is read.
        count: how many batches.

    >>> [batch.tolist() for batch, _ in Head(pr.Loader([1, 2, 3], batch_size=1), 2).read(0, 0, 0)]
    [[1], [2]]
    """

    source: Source
    count: int

    def open(self, seed: int, *, shard: int | range = 0, shards: int = 1) -> Session:
        """Start to read."""
        return _HeadSession(self.source.open(seed, shard=shard, shards=shards), self.count)

    def after(self, seed: int, epoch: int, cursor: int) -> Position:
        """Say where the next batch leads."""
        return self.source.after(seed, epoch, cursor)


@attrs.frozen
class _HeadSession(Session):
    session: Session
    count: int

    def read(self, epoch: int, cursor: int, stream: Tensor | None = None) -> Iterator[tuple[Any, Position]]:
        """Read the first batches."""
        return islice(self.session.read(epoch, cursor, stream), self.count)

    def close(self) -> None:
        """Close the source."""
        self.session.close()


def smaller(recipe: Recipe) -> Recipe:
    """Make the recipe with small batches, where purerun makes them."""
    train, val, test = map(_smaller, (recipe.train, recipe.val, recipe.test))
    return attrs.evolve(recipe, train=recipe.train if train is None else train, val=val, test=test)


def _smaller(source: Source | None) -> Source | None:
    if isinstance(source, Loader) and source.batch_size is not None:
        return attrs.evolve(source, batch_size=_size(source.batch_size, len(source.dataset)))
    if isinstance(source, Stream):
        return attrs.evolve(source, batch_size=min(source.batch_size, _LARGEST))
    return source


def _size(batch_size: int, samples: int) -> int:
    """Choose a batch size that leaves no tiny batch at the end of an epoch, on which a batch norm would fail.

    >>> _size(64, 33), _size(4, 33)
    (13, 4)
    """
    if batch_size <= _LARGEST:
        return batch_size
    return max(range(_SMALLEST, _LARGEST + 1), key=lambda size: (min(samples % size or size, size // 2), size))


def shorter(recipe: Recipe, iters: int) -> Recipe:
    """Make the recipe that ends after a few iterations, and validates on little, every other one."""
    if recipe.val is None:
        return attrs.evolve(recipe, epochs=None, iters=iters)
    often = AnyOf((recipe.validate, Every(2, "iter")))
    return attrs.evolve(recipe, epochs=None, iters=iters, val=Head(recipe.val, _JUDGED), validate=often)


def near_the_end(source: Source, state: State, batches: int) -> State:
    """Put a state a few batches before the end of an epoch, if the source can begin there at once.

    >>> loader = pr.Loader([1, 2, 3, 4, 5], batch_size=2)
    >>> int(near_the_end(loader, pr.testing.counted(), 2)["cursor"])
    2
    """
    if not isinstance(source, Loader) or source.batch_size is None:
        return state
    try:
        return state.replace(cursor=source.batch_size * max(len(source) - batches, 0))
    except TypeError:
        return state  # an epoch without end
