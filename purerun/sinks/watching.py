"""Watching: the states of a loop, handed on one by one to whoever reads them, past all sinks."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from itertools import count
from typing import TypeAlias

from purerun.checkpoint import find, read_manifest
from purerun.sinks.sink import Desk, Sink, SinkError
from purerun.state import State

StreamFunction: TypeAlias = Callable[[Iterator[State]], Iterator[State]]


def watch(
    states: Iterator[State],
    *sinks: Sink | StreamFunction,
    resume: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Watched:
    """Let sinks watch a run: an iterator of the same states.

    When it ends, is left or fails, all sinks are closed, and what went wrong passes through.
    A sink that fails while it is closed after another failure is named in a note on that one.

    Args:
        states: a run, such as `train_loop(state, loader)`.
        sinks: what watches; besides sinks, any function from an iterator of states to one.
        resume: the checkpoint, or the run by its last one, that `states` goes on from: sinks
            with a memory go on as if nothing had happened.
        overwrite: begin anew where another run has left its log or its checkpoints.

    Raises:
        CheckpointError: there is no checkpoint to go on from.
        SinkError: when the first state is asked for: a sink would do harm.

    >>> import tempfile, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> states = pr.TrainLoop(step, iters=4)(step.init(seed=0), [torch.ones(4, 2)] * 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for state in pr.watch(states, pr.sinks.Checkpoint(folder, every="2 iters")):
    ...         pass
    ...     pr.checkpoint.names(folder)
    ('iter_00000002', 'iter_00000004')
    """
    plain = [sink for sink in sinks if not isinstance(sink, Sink)]
    for sink in plain:
        if not callable(sink):
            raise TypeError(f"expected a sink such as pr.sinks.Log(every=50), got {sink!r}")
        states = sink(states)
    ours = [sink for sink in sinks if isinstance(sink, Sink)]
    desk = Desk(overwrite=overwrite)
    if resume is not None:
        desk.resumed = find(resume)
        desk.manifest = read_manifest(desk.resumed)
    return states.joined(ours, desk) if isinstance(states, Watched) else Watched(states, ours, desk)


class Watched(Iterator[State]):
    """A run that is watched.  Nothing is opened before its first state is asked for."""

    def __init__(self, states: Iterator[State], sinks: list[Sink], desk: Desk) -> None:
        self._states, self._sinks, self._desk = states, sinks, desk
        self._running: Generator[State, None, None] | None = None

    def joined(self, sinks: list[Sink], desk: Desk) -> Watched:
        """Watch with more sinks: all sit at one desk, so `watch(watch(s, a), b)` is `watch(s, a, b)`."""
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


def _watched(states: Iterator[State], sinks: list[Sink], desk: Desk) -> Generator[State, None, None]:
    error: BaseException | None = None
    try:
        _open(sinks, desk)
        sees = [watcher.see for watcher in desk.watchers.values()]
        began = False
        for state in states:
            if not began:
                _recall(state, desk)
                began = True
            try:
                for see in sees:
                    see(state)
            except BaseException:
                desk.torn = True
                raise
            yield state
        if not began:
            # The run was over already; perhaps it was killed before its sinks were closed.
            _recall(None, desk)
    except BaseException as caught:
        error = caught
        raise
    finally:
        _close(desk, error)


def _open(sinks: list[Sink], desk: Desk) -> None:
    # A stable sort: those that write down what the others remember come last.
    for sink in sorted(sinks, key=lambda sink: sink.keeps):
        desk.watchers[_free(sink.label, desk)] = sink.open(desk)


def _free(label: str, desk: Desk) -> str:
    numbered = (label if n == 1 else f"{label} {n}" for n in count(1))
    return next(name for name in numbered if name not in desk.watchers)


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
