"""What a loop needs of its data: a source that opens into a session, which reads from a position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

from torch import Tensor

from purerun.data.place import Position, StateLike


class Session(ABC):
    """One opened source: it owns what reading needs (worker processes) until it is closed.

    A session reads one epoch at a time; a new `read` ends the one before.
    """

    @abstractmethod
    def read(self, epoch: int, cursor: int, stream: Tensor | None = None) -> Iterator[tuple[Any, Position]]:
        """Read what is left of an epoch: each batch, and the position after it.

        When nothing comes (a cursor in a tail that `drop_last` drops), or nothing more, the
        epoch is over and the run stands at `(epoch + 1, 0)`.

        Args:
            epoch: which epoch.
            cursor: samples of its order that are consumed.
            stream: the slot "stream" of the state, for sources that have one.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Source(ABC):
    """A description of data that can be read from any position of any seed."""

    @abstractmethod
    def open(self, seed: int, *, shard: int | range = 0, shards: int = 1) -> Session:
        """Start to read: the session of one seed.

        Args:
            seed: the seed of the run; order and augmentation are functions of it.
            shard: which slice of each global batch to read; of a range of them each batch comes as
                `purerun.data.Shards`, the slices that have samples, each made as a batch by itself.
            shards: into how many slices the global batches are cut; positions count global
                samples all the same.
        """

    @abstractmethod
    def after(self, seed: int, epoch: int, cursor: int) -> Position:
        """Say where the next batch leads, without reading it.

        Raises:
            TypeError: only reading can tell.
        """

    def __iter__(self) -> NoReturn:
        """Refuse: an order needs a seed and an epoch."""
        raise TypeError(
            "expected to be told from where to read, because order and augmentation are functions of a seed: "
            "`for batch, position in loader.read(seed, epoch, cursor)` does so; a TrainLoop takes the loader itself"
        )

    def slots(self) -> dict[str, Tensor]:
        """Make what a state must carry for this source beside its counters: by name, at full size."""
        return {}

    def read(self, seed: int, epoch: int, cursor: int, stream: Tensor | None = None) -> Iterator[tuple[Any, Position]]:
        """Read what is left of an epoch in a session of its own: each batch, and the position after it."""
        with self.open(seed) as session:
            yield from session.read(epoch, cursor, stream)

    def seek(self, state: Mapping[str, Any]) -> Iterator[Any]:
        """Read the batches that are left of the epoch in which a state stands.

        Where nothing is left of it (a changed batch size can leave a tail that is dropped),
        the next epoch is read, as `advance` counts too.
        """
        seed, epoch, cursor = (int(state[name]) for name in ("seed", "epoch", "cursor"))
        stream = state.get("stream", None) if self.slots() else None
        anything = False
        for batch, _ in self.read(seed, epoch, cursor, stream):
            anything = True
            yield batch
        if not anything:
            yield from (batch for batch, _ in self.read(seed, epoch + 1, 0))

    def advance(self, state: StateLike) -> StateLike:
        """Make the state that stands after its next batch.

        Raises:
            TypeError: only reading can tell where the next batch ends; take the positions that
                `read` yields: `state = position.into(state)`.
        """
        seed, epoch, cursor = (int(state[name]) for name in ("seed", "epoch", "cursor"))  # type: ignore[index]
        return self.after(seed, epoch, cursor).into(state)
