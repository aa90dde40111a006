"""Reading something without random access from a position: by its own seek, by its saved state, or by skipping."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import attrs
from torch import Tensor

from purerun.data import slot
from purerun.data.nest import cut
from purerun.data.place import Position
from purerun.data.source import Session
from purerun.random import Key, keyed_everywhere, seed_everywhere


class InexactResume(UserWarning):
    """Reading began in the middle of an epoch by loading and throwing away what comes before."""


@runtime_checkable
class Seekable(Protocol):
    """What can begin anywhere by itself: exact, and nothing is loaded twice."""

    def seek(self, epoch: int, position: int) -> Iterator[Any]:
        """Iterate over what is left of an epoch after `position` samples: a pure function."""


@runtime_checkable
class Stateful(Protocol):
    """What can write down where it stands; the round trip must be faithful, also at an epoch's end."""

    def state_dict(self) -> Mapping[str, Any]:
        """Say where the iteration stands."""

    def load_state_dict(self, state: Any) -> None:
        """Go there: the next `iter` goes on from it."""


@attrs.frozen
class Flow:
    """How the items of a source are read and made into batches.

    Attributes:
        source: an iterable of items, perhaps Seekable or Stateful.
        unit: what an item is, "sample" or "batch"; names the keys under which items are drawn.
        group: items that make one batch.
        drop_last: leave out a group that is not full.
        count: item -> samples in it.
        each: item -> item, at the item's key.
        join: (items, epoch, position of the first sample, shard or shards, of how many) -> batch.
        capacity: bytes of the slot of a Stateful source.
        advice: what to do about an inexact resume.
    """

    source: Iterable[Any] | Seekable
    unit: str
    group: int
    drop_last: bool
    count: Callable[[Any], int]
    each: Callable[[Any], Any]
    join: Callable[[list[Any], int, int, int | range, int], Any]
    capacity: int
    advice: str

    @property
    def keeps_state(self) -> bool:
        """Whether the source's place must be carried in a slot."""
        return isinstance(self.source, Stateful) and not isinstance(self.source, Seekable)

    @property
    def once(self) -> bool:
        """Whether the source can be run through only once."""
        plain = not isinstance(self.source, Seekable | Stateful)
        return plain and isinstance(self.source, Iterator) and iter(self.source) is self.source

    def slots(self) -> dict[str, Tensor]:
        """Make the slot that a state must carry."""
        return {"stream": slot.empty(self.capacity)} if self.keeps_state else {}


class FlowSession(Session):
    """A source without random access at work.

    It reads one batch ahead, because only that tells whether a batch is an epoch's last.
    """

    def __init__(self, flow: Flow, seed: int, shard: int | range, shards: int) -> None:
        self._flow, self._seed, self._shard = flow, seed, (shard, shards)

    def read(self, epoch: int, cursor: int, stream: Tensor | None = None) -> Iterator[tuple[Any, Position]]:
        """Read what is left of an epoch: each batch, and the position after it."""
        flow, run = self._flow, _Run(self._flow, self._seed, epoch)
        with keyed_everywhere(run.key("order")):
            run.begin(cursor, stream)
            start, group = run.position, run.take()
        if not group and not cursor:
            raise ValueError(_nothing(flow, epoch))
        while group:
            with keyed_everywhere(run.key("order")):
                stop, mark, ahead = run.position, run.mark(), run.take()
                place = Position(epoch, stop, mark) if ahead else Position(epoch + 1, 0, run.mark())
                batch = flow.join(group, epoch, start, *self._shard)
            yield batch, place
            start, group = stop, ahead

    def close(self) -> None:
        """Let go of nothing: the source owns its workers."""


class _Run:
    """One epoch being run through; each item is drawn with the global generators at the key of its position."""

    def __init__(self, flow: Flow, seed: int, epoch: int) -> None:
        self._flow, self._seed, self._epoch = flow, seed, epoch
        self._items: Iterator[Any] = iter(())
        self._rest: list[Any] = []
        self.position = 0

    def key(self, stream: str, *path: int) -> Key:
        """Make the key of a stream of chance in this epoch."""
        return Key.of(self._seed, stream, self._epoch, *path)

    def begin(self, cursor: int, stream: Tensor | None) -> None:
        """Come to a position by the best way that the source offers."""
        source = self._flow.source
        if isinstance(source, Seekable):
            self._items, self.position = source.seek(self._epoch, cursor), cursor
        elif self._flow.keeps_state and stream is not None and (state := slot.unpack(stream)) is not None:
            source.load_state_dict(state)  # type: ignore[attr-defined]
            self._items, self.position = iter(source), cursor
        elif cursor:
            self._skip(source, cursor)
        else:
            self._items = iter(source)

    def take(self) -> list[Any]:
        """Draw the items of the next batch; none when the epoch is over."""
        flow = self._flow
        items = [flow.each(item) for _ in range(flow.group) for item in self._draw()]
        return [] if flow.drop_last and len(items) < flow.group else items

    def mark(self) -> Tensor | None:
        """Write down where the source stands."""
        if not self._flow.keeps_state:
            return None
        return slot.pack(self._flow.source.state_dict(), self._flow.capacity)  # type: ignore[union-attr]

    def _draw(self) -> list[Any]:
        """Draw one item; none at the end."""
        if self._rest:
            items, self._rest = self._rest, []
        else:
            # A DataLoader makes its order in `iter` if it has workers, and with its first batch if it has none:
            # not to start anew between the two makes it one order.
            if self.position or self._flow.unit == "sample":
                seed_everywhere(self.key(self._flow.unit, self.position))
            items = list(islice(self._items, 1))
        self.position += sum(map(self._flow.count, items))
        return items

    def _skip(self, source: Iterable[Any], cursor: int) -> None:
        name = type(source).__name__
        if self._flow.once:
            raise ValueError(
                f"expected to begin at an epoch's start, got sample {cursor} of epoch {self._epoch}: {name} can be run "
                "through only once, so what it gave before is gone; give something that can be iterated again"
            )
        warnings.warn(
            f"epoch {self._epoch} goes on at sample {cursor}, and {name} has no way to begin there: what comes before "
            f"is loaded and thrown away. The rest is the same only if {name} gives the same again whenever this epoch "
            f"of this seed is read (no memory of its own, same workers). {self._flow.advice}",
            InexactResume,
            stacklevel=2,
        )
        self._items, last = iter(source), []
        while self.position < cursor and (items := self._draw()):
            last = items
        if self.position > cursor:
            size = self._flow.count(last[0])
            self._rest = [cut(last[0], size - (self.position - cursor), size)]
            self.position = cursor


def _nothing(flow: Flow, epoch: int) -> str:
    name = type(flow.source).__name__
    remedy = (
        "it can be run through only once, so give something that can be iterated again (a list, a DataLoader, a class "
        "with __iter__)"
        if flow.once
        else "give it data, a smaller batch_size, or drop_last=False"
    )
    return f"expected an epoch with at least one batch, got none from {name} in epoch {epoch}; {remedy}"
