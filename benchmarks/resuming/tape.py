"""What the training step notes: which samples it was given, when, and their loss."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs


class Stopped(Exception):
    """The run was to stop here."""


@attrs.frozen
class Line:
    """One step.

    Attributes:
        step: how many steps were done before it, by the runner's own count.
        epoch: likewise.
        seconds: from the beginning of the training script, its imports done, to the arrival of the batch.
        samples: their numbers, in order.
        loss: of the batch.
    """

    step: int
    epoch: int
    seconds: float
    samples: tuple[int, ...] = attrs.field(converter=tuple)
    loss: float


class Tape:
    """A file of lines that a kill leaves whole.

    Args:
        path: where.
        stop: raise `Stopped` when this step is about to begin.
        doomed: somebody is going to kill this process; wait for it when this step is about to begin.
    """

    def __init__(self, path: Path, *, stop: int | None = None, doomed: int | None = None) -> None:
        self._stream = path.open("ab", buffering=0)
        self._stop, self._doomed = stop, doomed
        self._began = perf_counter()
        self._step: dict[str, Any] = {}

    def begin(self, step: int, epoch: int, samples: Iterable[int]) -> None:
        """Note a batch as it reaches the training step.

        Raises:
            Stopped: the run was to stop here.
        """
        seconds = perf_counter() - self._began
        if step == self._stop:
            raise Stopped(f"{step} steps are done")
        while step == self._doomed:
            signal.pause()
        self._step = {"step": step, "epoch": epoch, "seconds": seconds, "samples": [int(each) for each in samples]}

    def end(self, loss: float) -> None:
        """Note that the step is done."""
        self._stream.write((json.dumps({**self._step, "loss": loss}) + "\n").encode())


def read(path: Path) -> list[Line]:
    """Read a tape; a line that a kill has cut is left out."""
    return [Line(**json.loads(line)) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def length(path: Path) -> int:
    """Count the steps on a tape."""
    return path.read_bytes().count(b"\n") if path.exists() else 0
