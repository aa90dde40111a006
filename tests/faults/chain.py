"""A chain: one run that is started, killed, gone on with, killed again, ..., and in the end left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import attrs

from tests.faults.conftest import Start, Whole
from tests.faults.moments import Moment
from tests.faults.runs import Run, listed


@attrs.define
class Chain:
    """One run, killed again and again; after each kill it is seen to that nothing good was lost.

    Attributes:
        start: starts a process.
        whole: the run as it should be.
        folder: where it is.
        kills: how often it was killed.
        inside: how often that left a save unfinished.
        newest: the iteration to which the last kill took it back.
    """

    start: Start
    whole: Whole
    folder: Path
    kills: int = 0
    inside: int = 0
    newest: int = 0

    @property
    def run(self) -> Run:
        """What is on the disk."""
        return Run(self.folder / "run")

    def strike(self, *words: object, moment: Moment | None = None, **how: object) -> bool:
        """Go on with it, and kill it at a moment, if it does not do so itself; say whether it died."""
        before = self.run.unfinished
        command = self.start("--resume", *words, folder=self.folder, **how)
        if moment is not None and moment.come(command, self.run):
            command.send(signal.SIGKILL)
        if command.code != -signal.SIGKILL:
            assert 0 == command.code, command.err
            return False
        self.kills += 1
        self.inside += bool(self.run.unfinished - before)
        self._nothing_is_lost()
        return True

    def finish(self, *words: object, **how: object) -> None:
        """Go on with it until it ends, and compare."""
        command = self.start("--resume", *words, folder=self.folder, **how)
        self.whole.same(self.run, command)
        assert self.whole.run.recipe == self.run.recipe
        # Also what killed saves and removals have left half done is gone.
        assert listed(self.whole.run.folder) == listed(self.run.folder)

    def _nothing_is_lost(self) -> None:
        """What was there is there, or something newer; whatever has its name is good."""
        self.whole.good(self.run)
        before, self.newest = self.newest, self.run.newest()

        assert before <= self.newest
        assert bool(self.run.published) <= bool(self.newest)
