"""What the sinks of one run share while they are at work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import attrs

from purerun.checkpoint import JSON, Manifest
from purerun.checkpoint.layout import FOLDER
from purerun.state import State


class SinkError(Exception):
    """A sink cannot do what it was asked to without harm; the message says what to do."""


def belongs(checkpoint: Path | None, run: Path) -> bool:
    """Say whether a checkpoint is one of the run in a directory; None is of none.

    >>> belongs(Path("runs/a/checkpoints/iter_00000500"), Path("runs/a")), belongs(None, Path("runs/a"))
    (True, False)
    """
    return checkpoint is not None and checkpoint.resolve().parent == (run / FOLDER).resolve()


@attrs.define
class Desk:
    """What the watchers of one run share.

    Attributes:
        resumed: the checkpoint that the run goes on from.
        manifest: what it says.
        overwrite: whether what another run left in the same place may be replaced.
        torn: whether a watcher failed at a state, so that some have seen it and some have not.
        board: the newest line of the log for each mode, for others to show.
        watchers: by label.
    """

    resumed: Path | None = None
    manifest: Manifest | None = None
    overwrite: bool = False
    torn: bool = False
    board: dict[str, Mapping[str, JSON]] = attrs.field(factory=dict)
    watchers: dict[str, Watcher] = attrs.field(factory=dict)

    def memory(self) -> dict[str, JSON]:
        """Ask all watchers what a run that goes on from here must know: label -> plain data."""
        asked = {label: watcher.memory() for label, watcher in self.watchers.items()}
        return {label: memory for label, memory in asked.items() if memory is not None}

    def sync(self) -> None:
        """Have all watchers make durable what their memories speak of; on the thread of whoever writes those down."""
        for watcher in self.watchers.values():
            watcher.sync()


class Watcher(ABC):
    """A sink at work on one run."""

    def check(self, state: State) -> None:
        """Refuse the first state, before any sink has begun: nothing is written or removed here.

        Raises:
            SinkError: this sink would do harm, or not what it was asked to.
        """

    def begin(self, state: State) -> None:
        """Begin with the first state, which all sinks have agreed to: from here on files may be replaced."""

    @abstractmethod
    def see(self, state: State) -> None:
        """Look at the state after an iteration.

        Called once an iteration, so it should cost next to nothing when nothing is due.
        Of the state, only single tensors may be kept (`state.hold()` to keep all of it), and
        nothing of it is changed.
        """

    def close(self, error: BaseException | None) -> None:
        """Finish: write what is pending, let go of files.

        Args:
            error: None at the end of the run, GeneratorExit when its reader left, or what went wrong.
        """

    def memory(self) -> JSON:
        """Say what a run that goes on from the last state seen must know; None for nothing."""
        return None

    def sync(self) -> None:
        """Make durable what `memory` spoke of; called on another thread, perhaps while the run goes on.

        Raises:
            SaveError: it cannot be.
        """

    def recall(self, memory: JSON) -> None:
        """Remember what was known at a checkpoint; called before `check`, or at the end when there is none to come.

        Args:
            memory: what `memory` said when the checkpoint was made; None if this sink was not there.
        """
