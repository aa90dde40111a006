"""How the directory of a run is laid out: the names of its checkpoints, and where each of them is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from purerun.checkpoint.error import reading, writing
from purerun.checkpoint.place import local
from purerun.checkpoint.publish import retire, settle, whole

FOLDER = "checkpoints"

_ENTRY = re.compile(r"(iter_\d{8,18})|\.(iter_\d{8,18})\.(?:new|old|gone)")


def name_of(iter: int) -> str:
    """Name the checkpoint of an iteration.

    >>> name_of(500)
    'iter_00000500'
    """
    return f"iter_{iter:08d}"


def iteration_of(name: str) -> int | None:
    """Read the iteration in the name of a checkpoint; None if it is no such name.

    >>> iteration_of("iter_00000500"), iteration_of(".iter_00000500.new"), iteration_of("a")
    (500, 500, None)
    """
    entry = _ENTRY.fullmatch(name)
    return number(entry[1] or entry[2]) if entry else None


def path_of(run: str | os.PathLike[str], iter: int) -> Path:
    """Say where a run keeps the checkpoint of an iteration."""
    return folder_of(run) / name_of(iter)


def path_of_name(run: str | os.PathLike[str], name: str) -> Path:
    """Say where a checkpoint of a run is: at its place, or beside it after a crash between two renames."""
    return whole(folder_of(run) / name)


def names(run: str | os.PathLike[str]) -> tuple[str, ...]:
    """List the checkpoints of a run by name, the first iteration first.

    Whether they are good is not looked at, but for those that a crash has left beside their place: of
    these only whole ones are listed.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    folder = folder_of(run)
    with reading(folder):
        return tuple(sorted((name for name in _begun(folder) if whole(folder / name).exists()), key=number))


def sweep(run: str | os.PathLike[str]) -> None:
    """Finish what killed saves and removals have left half done: whole ones to their places, all else away.

    Raises:
        CheckpointError: the folder cannot be read.
        SaveError: it cannot be written.
    """
    folder = folder_of(run)
    for name in _begun(folder):
        with writing(folder / name):
            settle(folder / name)


def remove(run: str | os.PathLike[str], name: str) -> None:
    """Remove a checkpoint of a run; what can no longer be removed is only out of sight.

    Raises:
        SaveError: the folder cannot be written.
        CheckpointError: something else than a checkpoint is in it; it is left as it is.
    """
    place = folder_of(run) / name
    with writing(place):
        retire(place)


def number(name: str) -> int:
    """Read the iteration in what is the name of a checkpoint."""
    return int(name.removeprefix("iter_"))


def folder_of(run: str | os.PathLike[str]) -> Path:
    """Say in which folder a run keeps its checkpoints.

    Raises:
        CheckpointError: the run is no path of this machine.
    """
    return local(run) / FOLDER


def entries(folder: Path) -> list[str]:
    """List what is in a folder by name; nothing if there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    with reading(folder):
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _begun(folder: Path) -> set[str]:
    begun = [_ENTRY.fullmatch(entry) for entry in entries(folder)]
    return {entry[1] or entry[2] for entry in begun if entry}
