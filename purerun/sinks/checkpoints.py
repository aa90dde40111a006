"""Checkpoints of a run: written when they are due, and when the run ends."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from purerun.checkpoint import JSON, last, name_of, names, path_of, point, remove, save
from purerun.checkpoint.locate import FOLDER, LAST
from purerun.checkpoint.manifest import MANIFEST
from purerun.hooks import When, every
from purerun.sinks.desk import Desk, SinkError, Watcher
from purerun.sinks.sink import Sink
from purerun.state import StaleState, State, peek


@attrs.frozen
class Checkpoint(Sink):
    """Save states into `DIRECTORY/checkpoints/iter_00000500/`, and keep `DIRECTORY/checkpoints/last`.

    A run that goes on from one of its own checkpoints gives up those after it: they are removed
    when its first new state is there, as the lines of its log are.

    Attributes:
        directory: of the run.
        every: when to save.
        keep: how many to keep, the newest; None for all.  The one that `last` names stays.
        last: save the last state too, when the run ends, is left or fails, as far as that state is whole.
        recipe: the run as plain data, for the manifests.
    """

    keeps = True

    directory: Path = attrs.field(converter=Path)
    every: When = attrs.field(default="1 epoch", kw_only=True, converter=every)
    keep: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    last: bool = attrs.field(default=True, kw_only=True)
    recipe: JSON = attrs.field(default=None, kw_only=True, repr=False)

    def open(self, desk: Desk) -> Watcher:
        """Begin to save.

        Raises:
            SinkError: the directory holds another run's checkpoints.
        """
        _vacate(self.directory, desk)
        return _Saving(self, desk)


@attrs.frozen
class _Job:
    """One checkpoint to be written: all that it takes, and nothing that changes."""

    state: State
    memory: dict[str, JSON]


class _Saving(Watcher):
    def __init__(self, sink: Checkpoint, desk: Desk) -> None:
        self._sink, self._desk = sink, desk
        self._parent = None if desk.manifest is None else desk.manifest.digest
        self._unsaved: State | None = None

    def see(self, state: State) -> None:
        # Only the container: when a lease ends it is emptied, and holds nothing back.
        self._unsaved = state
        if self._sink.every(state):
            self._hand_over(state)

    def close(self, error: BaseException | None) -> None:
        # Had the others seen more than this state, what they remember would not fit it.
        if self._sink.last and self._unsaved is not None and not self._desk.torn and _whole(self._unsaved):
            self._hand_over(self._unsaved)

    def recall(self, memory: JSON) -> None:
        manifest, run = self._desk.manifest, self._sink.directory
        if manifest is not None and _inside(run, self._desk):
            # What lies after it is cut, as the log is: the run may come to other states now.
            here = name_of(manifest.counters["iter"])
            point(run, here)
            for name in names(run)[names(run).index(here) + 1 :]:
                remove(run, name)

    def _hand_over(self, state: State) -> None:
        # Whatever comes of it, closing does not try the same state again.
        self._unsaved = None
        self._write(_Job(state, self._desk.memory()))

    def _write(self, job: _Job) -> None:
        run, iter = self._sink.directory, int(job.state["iter"])
        manifest = save(job.state, path_of(run, iter), recipe=self._sink.recipe, parent=self._parent, memory=job.memory)
        self._parent = manifest.digest
        point(run, name_of(iter))
        if self._sink.keep is not None:
            prune(run, self._sink.keep)


def prune(run: str | os.PathLike[str], keep: int) -> None:
    """Remove all checkpoints of a run but the newest; the one that `last` names stays.

    >>> import tempfile, purerun as pr
    >>> with tempfile.TemporaryDirectory() as run:
    ...     for iter in (1, 2, 3, 4):
    ...         _ = pr.save(pr.testing.counted(iter=iter), pr.checkpoint.path_of(run, iter))
    ...     pr.checkpoint.point(run, "iter_00000001")
    ...     prune(run, 2)
    ...     names(run)
    ('iter_00000001', 'iter_00000003', 'iter_00000004')
    """
    for name in names(run)[:-keep]:
        if name != last(run):
            remove(run, name)


def _vacate(run: Path, desk: Desk) -> None:
    """Make sure that the checkpoints in a directory are of this run."""
    if (run / MANIFEST).exists():
        raise SinkError(f"expected the directory of a run, but {run} is a checkpoint itself; choose another place")
    known = names(run)
    if not known or _inside(run, desk):
        return
    if not desk.overwrite:
        raise SinkError(
            f"{run} holds the checkpoints of another run; go on with it (watch(..., resume={str(run)!r})), replace "
            "them (watch(..., overwrite=True)), or choose another place"
        )
    for name in known:
        remove(run, name)
    (run / FOLDER / LAST).unlink(missing_ok=True)


def _inside(run: Path, desk: Desk) -> bool:
    """Say whether the run goes on from one of its own checkpoints."""
    return desk.resumed is not None and desk.resumed.resolve().parent == (run / FOLDER).resolve()


def _whole(state: State) -> bool:
    try:
        peek(state)
    except StaleState:
        return False
    return True
