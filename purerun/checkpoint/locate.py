"""Where checkpoints are: their names in a run directory, the last one, the newest that can be believed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import attrs

from purerun.checkpoint.error import CheckpointError, SaveError
from purerun.checkpoint.manifest import MANIFEST
from purerun.checkpoint.publish import retire, settle, whole, write_text

FOLDER = "checkpoints"
LAST = "last"

_NAME = re.compile(r"iter_(\d{8,18})")
_POINTER = re.compile(r"last|best_[\w.-]+")
_ENTRY = re.compile(r"(iter_\d{8,18})|\.(iter_\d{8,18})\.(?:new|old|gone)")


Belief = TypeVar("Belief")


@attrs.frozen
class Found(Generic[Belief]):
    """The checkpoint to go on from.

    Attributes:
        path: its directory.
        content: what was read there, and is believed.
        rejected: one line for each newer one that cannot be believed, with the reason.
    """

    path: Path
    content: Belief
    rejected: tuple[str, ...] = ()


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
    return _iteration(entry[1] or entry[2]) if entry else None


def path_of(run: str | os.PathLike[str], iter: int) -> Path:
    """Say where a run keeps the checkpoint of an iteration."""
    return Path(run) / FOLDER / name_of(iter)


def path_of_name(run: str | os.PathLike[str], name: str) -> Path:
    """Say where a checkpoint of a run is: at its place, or beside it after a crash between two renames."""
    return whole(Path(run) / FOLDER / name)


def names(run: str | os.PathLike[str]) -> tuple[str, ...]:
    """List the checkpoints of a run by name, the first iteration first.

    Whether they are good is not looked at, but for those that a crash has left beside their place: of
    these only whole ones are listed.
    """
    folder = Path(run) / FOLDER
    return tuple(sorted((name for name in _begun(folder) if whole(folder / name).exists()), key=_iteration))


def sweep(run: str | os.PathLike[str]) -> None:
    """Finish what killed saves and removals have left half done: whole ones to their places, all else away."""
    folder = Path(run) / FOLDER
    for name in _begun(folder):
        settle(folder / name)


def _begun(folder: Path) -> set[str]:
    entries = [_ENTRY.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return {entry[1] or entry[2] for entry in entries if entry}


def last(run: str | os.PathLike[str]) -> str | None:
    """Read the pointer to the last checkpoint: its name, or None when there is no pointer.

    Raises:
        CheckpointError: it does not hold a name.
    """
    return pointed(run, LAST)


def pointed(run: str | os.PathLike[str], pointer: str) -> str | None:
    """Read a pointer, such as `last` or `best_accuracy`: the name in it, or None when there is no such pointer.

    Raises:
        CheckpointError: it does not hold a name.
    """
    file = Path(run) / FOLDER / pointer
    if file.is_symlink() or not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            text = stream.read(64).decode("ascii", errors="replace").strip()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if not _NAME.fullmatch(text):
        raise CheckpointError(f"{file}: expected a name such as {name_of(500)}, got {text!r}; write one into it")
    return text


def pointers(run: str | os.PathLike[str]) -> dict[str, str]:
    """Read all pointers of a run: pointer -> the name in it; those that hold no name are left out."""
    folder = Path(run) / FOLDER
    found = [entry.name for entry in folder.iterdir() if _POINTER.fullmatch(entry.name)] if folder.is_dir() else []
    named: dict[str, str] = {}
    for pointer in sorted(found):
        try:
            named[pointer] = pointed(run, pointer) or ""
        except CheckpointError:
            continue
    return {pointer: name for pointer, name in named.items() if name}


def point(run: str | os.PathLike[str], name: str, pointer: str = LAST) -> None:
    """Make a pointer name a checkpoint; nothing is written if it does so already.

    Raises:
        SaveError: it cannot be written.
    """
    file = Path(run) / FOLDER / pointer
    try:
        if pointed(run, pointer) == name:
            return
    except CheckpointError:
        pass  # it holds something else, and is written anew
    try:
        write_text(file, f"{name}\n")
    except OSError as error:
        raise SaveError(f"{file}: cannot be written: {error}; free space or choose another place") from error


def find(path: str | os.PathLike[str]) -> Path:
    """Find the checkpoint that is meant by a checkpoint directory or a run directory.

    Of a run it is the one that `last` names; the one of the highest iteration when a crash
    came before there was a `last`.

    Raises:
        CheckpointError: there is none.
    """
    place = Path(path)
    directory = whole(place)
    if (directory / MANIFEST).exists():
        return directory
    known = names(place)
    if not known:
        raise CheckpointError(
            f"{place}: expected a checkpoint or the directory of a run, found "
            + (f"a folder without {MANIFEST} and {FOLDER}" if place.is_dir() else "nothing")
        )
    return whole(place / FOLDER / (last(place) or known[-1]))


def newest(run: str | os.PathLike[str], believe: Callable[[Path], Belief]) -> Found[Belief]:
    """Find the newest checkpoint of a run that can be believed.

    The one that `last` names comes first, then those before it, the newest first.  Those
    after it come at the end: a run that was taken back to an earlier iteration is the one
    that `last` speaks of.

    Args:
        run: the directory of a run.
        believe: reads a checkpoint, and raises CheckpointError if it is damaged; `pr.load` hashes every
            byte, `read_manifest` looks at sizes only.

    Raises:
        CheckpointError: there is none, or all are damaged; the message lists the reasons.
    """
    rejected: list[str] = []
    for name in _by_trust(Path(run), rejected):
        path = path_of_name(run, name)
        try:
            return Found(path, believe(path), tuple(rejected))
        except CheckpointError as error:
            rejected.append(str(error))
    reasons = "".join(f"\n  {line}" for line in rejected) or " there is none"
    raise CheckpointError(f"{run}: expected a checkpoint that can be believed;{reasons}")


def remove(run: str | os.PathLike[str], name: str) -> None:
    """Remove a checkpoint of a run; what can no longer be removed is only out of sight."""
    retire(Path(run) / FOLDER / name)


def _by_trust(run: Path, rejected: list[str]) -> list[str]:
    known = [*reversed(names(run))]
    try:
        pointed = last(run)
    except CheckpointError as error:
        rejected.append(str(error))
        pointed = None
    if pointed is None:
        return known
    limit = _iteration(pointed)
    return [*(n for n in known if _iteration(n) <= limit), *(n for n in known if _iteration(n) > limit)]


def _iteration(name: str) -> int:
    return int(name.removeprefix("iter_"))
