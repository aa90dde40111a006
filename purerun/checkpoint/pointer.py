"""Pointers: small files that name a checkpoint of a run, the last one or the best."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from purerun.checkpoint.error import CheckpointError, reading, writing
from purerun.checkpoint.layout import entries, folder_of, name_of
from purerun.checkpoint.place import local
from purerun.checkpoint.publish import write_text

LAST = "last"
LONGEST = 64
"""How many bytes of a pointer are read; a name has less."""

_NAME = re.compile(r"iter_\d{8,18}")
_POINTER = re.compile(r"last|best_[\w.-]+")


class LostPointer(UserWarning):
    """The pointer to the last checkpoint of a run is damaged, and the one of the highest iteration is taken for it."""


def last(run: str | os.PathLike[str]) -> str | None:
    """Read the pointer to the last checkpoint: its name, or None when there is no pointer, or a damaged one.

    Of the damaged one a `LostPointer` warns.

    Raises:
        CheckpointError: the run is no path of this machine.
    """
    place = local(run)
    with forgiving():
        return pointed(place, LAST)
    return None


def pointed(run: str | os.PathLike[str], pointer: str) -> str | None:
    """Read a pointer, such as `last` or `best_accuracy`: the name in it, or None when there is no such pointer.

    Raises:
        CheckpointError: it does not hold a name, or cannot be read.
    """
    file = folder_of(run) / pointer
    with reading(file):
        if file.is_symlink() or not file.is_file():
            return None
        with file.open("rb") as stream:
            return named(stream.read(LONGEST), str(file))


def named(raw: bytes, where: str) -> str:
    r"""Read what a pointer holds: the name of a checkpoint.

    Args:
        raw: its bytes.
        where: what to call it in an error.

    Raises:
        CheckpointError: it is no name.

    >>> named(b"iter_00000500\n", "last")
    'iter_00000500'
    """
    text = raw.decode("ascii", errors="replace").strip()
    if not _NAME.fullmatch(text):
        found = repr(text[:24]) if text.isascii() and text.isprintable() else "what is no text"
        raise CheckpointError(f"{where}: expected a name such as {name_of(500)}, found {found}; write one into it")
    return text


def pointers(run: str | os.PathLike[str]) -> dict[str, str]:
    """Read all pointers of a run: pointer -> the name in it; those that hold no name are left out.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    named: dict[str, str] = {}
    for pointer in (entry for entry in entries(folder_of(run)) if _POINTER.fullmatch(entry)):
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
    file = folder_of(run) / pointer
    try:
        if pointed(run, pointer) == name:
            return
    except CheckpointError:
        pass  # it holds something else, and is written anew
    with writing(file):
        write_text(file, f"{name}\n")


def unpoint(run: str | os.PathLike[str], pointer: str) -> None:
    """Remove a pointer, if it is there.

    Raises:
        SaveError: it cannot be removed.
    """
    file = folder_of(run) / pointer
    with writing(file):
        file.unlink(missing_ok=True)


@contextmanager
def forgiving() -> Iterator[None]:
    """Where a pointer to the last checkpoint is damaged, warn, and go on behind the block."""
    try:
        yield
    except CheckpointError as error:
        text = f"{error}; the checkpoint of the highest iteration is taken for the last one"
        warnings.warn(LostPointer(text), stacklevel=3)
