"""What a run has left on the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attrs

import purerun as pr

CLOCKS = {"time", "data_time", "eta", "timestamp", "memory"}


@attrs.frozen
class Run:
    """The directory of a run."""

    directory: Path

    @property
    def log(self) -> list[dict[str, object]]:
        """The lines of its log, without what clocks say."""
        read = map(json.loads, (self.directory / "log.jsonl").read_text().splitlines())
        return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read]

    @property
    def recipe(self) -> str:
        """What `recipe.toml` says."""
        return (self.directory / "recipe.toml").read_text()

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        return self.directory / "checkpoints"

    @property
    def pointers(self) -> dict[str, str]:
        """What `last` and `best_accuracy` say."""
        names = ("last", "best_accuracy")
        return {name: (self.folder / name).read_text() for name in names if (self.folder / name).exists()}

    @property
    def published(self) -> dict[int, Path]:
        """The checkpoints that stand under their own names: iteration -> directory, in their order."""
        names = (name for name in listed(self.folder) if re.fullmatch(r"iter_\d{8}", name))
        return {int(name.removeprefix("iter_")): self.folder / name for name in names}

    @property
    def unfinished(self) -> set[tuple[str, int]]:
        """What a save has begun and not finished: names, and numbers that no two of them share."""
        begun = (name for name in listed(self.folder) if re.fullmatch(r"\..+\.new", name))
        return {(name, changed(self.folder / name)) for name in begun}

    def stands(self, *iterations: int) -> bool:
        """Say whether it has just these checkpoints, `last` names the last of them, and nobody is at work on any."""
        # One look: between two, what was about to be removed is out of sight and not yet gone.
        there = [name for name in listed(self.folder) if name.startswith((".", "iter_"))]
        at_rest = there == [f"iter_{iteration:08d}" for iteration in iterations]
        return at_rest and self.pointers.get("last") == f"{there[-1]}\n"

    def newest(self) -> int:
        """Find the iteration to which a resume goes back: that of the newest good checkpoint; 0 if there is none."""
        try:
            found = pr.checkpoint.newest(self.directory, pr.load)
        except pr.checkpoint.CheckpointError:
            return 0
        assert () == found.rejected

        return int(pr.load(found.path)["iter"])


def listed(folder: Path) -> list[str]:
    """List the names in a folder, if there is one."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def changed(path: Path) -> int:
    """Say when a file, or the names in a folder, changed; 0 if there is none (any more)."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
