"""One process of a run, as plain data: what its command line asks for, and which files it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import attrs


@attrs.frozen
class Asked:
    """One process of a run.

    Attributes:
        train: `module:function` of `resuming.contestants`.
        folder: of the run; the first process finds it empty.
        number: of the process in this run, from 0.  All but the first go on.
        samples: of an epoch.
        stop: end when so many steps are done.
        doomed: when so many steps are done, wait to be killed.
    """

    train: str
    folder: Path = attrs.field(converter=Path)
    number: int
    samples: int
    stop: int | None = None
    doomed: int | None = None

    @classmethod
    def read(cls, text: str) -> Asked:
        """Read what `text` wrote."""
        return cls(**json.loads(text))

    @property
    def text(self) -> str:
        """This, for a command line."""
        return json.dumps(attrs.asdict(self), default=str)

    @property
    def run(self) -> Path:
        """The folder that the contestant fills with its checkpoints."""
        return self.folder / "run"

    @property
    def tape(self) -> Path:
        """What the training step notes."""
        return self._file("tape.jsonl")

    @property
    def weights(self) -> Path:
        """The weights and buffers in the end."""
        return self._file("weights.safetensors")

    @property
    def error(self) -> Path:
        """What went wrong, in one line."""
        return self._file("error.txt")

    @property
    def output(self) -> Path:
        """What the process printed."""
        return self._file("output.txt")

    def _file(self, name: str) -> Path:
        return self.folder / f"{self.number}_{name}"
