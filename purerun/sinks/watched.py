"""A run that is watched: its states, handed on one by one past all watchers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

from purerun.sinks.claim import claimed
from purerun.sinks.desk import Desk, SinkError, Watcher
from purerun.state import State

See: TypeAlias = Callable[[State], None]


class Opens(Protocol):
    """What is asked of a sink here."""

    keeps: ClassVar[bool]
    """Whether it writes down what the others remember."""

    @property
    def label(self) -> str:
        """The name under which a checkpoint keeps its memory."""

    @property
    def place(self) -> Path | None:
        """The directory that it needs for itself."""

    def open(self, desk: Desk) -> Watcher:
        """Begin to watch a run."""


def joined(states: Iterator[State], sinks: Sequence[Opens], desk: Desk) -> Watched:
    """Watch a run with more sinks: all sit at one desk, so `watch(watch(s, a), b)` is `watch(s, a, b)`."""
    return states.joined(sinks, desk) if isinstance(states, Watched) else Watched(states, sinks, desk)


class Watched(Iterator[State]):
    """A run that is watched.  Nothing is opened before its first state is asked for."""

    def __init__(self, states: Iterator[State], sinks: Sequence[Opens], desk: Desk) -> None:
        self._states, self._sinks, self._desk = states, sinks, desk
        self._running: Generator[State, None, None] | None = None

    def joined(self, sinks: Sequence[Opens], desk: Desk) -> Watched:
        """Watch with more sinks, at the desk of those that are there."""
        if self._running is not None:
            return Watched(self, sinks, desk)
        if desk.manifest is None:
            desk.resumed, desk.manifest = self._desk.resumed, self._desk.manifest
        desk.overwrite = desk.overwrite or self._desk.overwrite
        return Watched(self._states, [*self._sinks, *sinks], desk)

    def __iter__(self) -> Iterator[State]:
        if self._running is None:
            self._running = _watched(self._states, self._sinks, self._desk)
        return self._running

    def __next__(self) -> State:
        return next(self.__iter__())

    def close(self) -> None:
        """Leave the run: all sinks are closed."""
        if self._running is not None:
            self._running.close()


def _watched(states: Iterator[State], sinks: Sequence[Opens], desk: Desk) -> Generator[State, None, None]:
    with claimed(place for sink in sinks if (place := sink.place) is not None):
        yield from _passed(states, sinks, desk)


def _passed(states: Iterator[State], sinks: Sequence[Opens], desk: Desk) -> Generator[State, None, None]:
    error: BaseException | None = None
    try:
        _open(sinks, desk)
        observers, keepers = _sees(sinks, desk)
        began = False
        for state in states:
            if not began:
                _begin(state, sinks, desk)
                began = True
            desk.torn = True
            for see in observers:
                see(state)
            desk.torn = False
            for see in keepers:
                see(state)
            yield state
        if not began:
            # The run was over already; perhaps it was killed before its sinks were closed.
            _recall(None, desk)
    except BaseException as caught:
        error = caught
        raise
    finally:
        try:
            _close(desk, error)
        finally:
            # An error that is kept keeps this frame, and with it the loop and its workers, until
            # the garbage collector comes round.
            error = None
            if isinstance(states, Generator):
                states.close()


def _open(sinks: Sequence[Opens], desk: Desk) -> None:
    places = [place.resolve() for sink in sinks if (place := sink.place) is not None]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise SinkError(f"expected sinks with directories of their own, got two that write into {twice}; leave one out")
    # A stable sort: those that write down what the others remember come last.
    for sink in sorted(sinks, key=lambda sink: sink.keeps):
        desk.watchers[_free(sink.label, desk)] = sink.open(desk)


def _sees(sinks: Sequence[Opens], desk: Desk) -> tuple[list[See], list[See]]:
    """List what looks at each state: those that only look, and those that write down what the others remember."""
    sees: list[See] = [watcher.see for watcher in desk.watchers.values()]
    first = sum(not sink.keeps for sink in sinks)
    return sees[:first], sees[first:]


def _free(label: str, desk: Desk) -> str:
    numbered = (label if n == 1 else f"{label} {n}" for n in count(1))
    return next(name for name in numbered if name not in desk.watchers)


def _begin(state: State, sinks: Sequence[Opens], desk: Desk) -> None:
    _recall(state, desk)
    watchers = [*desk.watchers.values()]
    for watcher in watchers:
        watcher.check(state)
    # The checkpoints of a run that is replaced go first: what is left beside its log and recipe is its own.
    first = sum(not sink.keeps for sink in sinks)
    for watcher in [*watchers[first:], *watchers[:first]]:
        watcher.begin(state)


def _recall(state: State | None, desk: Desk) -> None:
    if desk.manifest is None:
        return
    there = desk.manifest.counters.get("iter", 0)
    if state is not None and (here := int(state["iter"])) <= there:
        raise SinkError(
            f"expected the run to go on from iteration {there} of {desk.resumed}, got a state of iteration {here}; "
            "begin the loop at `pr.load(...)` of what is given as resume"
        )
    for label, watcher in desk.watchers.items():
        watcher.recall(desk.manifest.memory.get(label))


def _close(desk: Desk, error: BaseException | None) -> None:
    """Close all watchers, the last opened first; raise what goes wrong unless something else already flies."""
    first: Exception | None = None
    for label, watcher in reversed(desk.watchers.items()):
        try:
            watcher.close(error)
        except Exception as own:  # noqa: BLE001 - the others must be closed all the same
            known = error if error is not None and not isinstance(error, GeneratorExit) else first
            first = first or own
            if known is not None:
                known.add_note(f"while the sink {label} was closed: {type(own).__name__}: {own}")
    if first is not None and (error is None or isinstance(error, GeneratorExit)):
        raise first
