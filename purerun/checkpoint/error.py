"""What goes wrong in this room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class CheckpointError(Exception):
    r"""A checkpoint cannot be written, found or believed; the message says which, why and what to do.

    >>> str(CheckpointError("found \x1b[31m at a")) == r"found \x1b[31m at a"
    True
    """

    def __init__(self, message: str) -> None:
        # Messages quote what is in files, and that must not steer the terminal that shows it.
        super().__init__("".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in message))


class SaveError(CheckpointError):
    """A checkpoint cannot be written: the disk is full, say; what was there before is as good as it was."""


def brief(text: object) -> str:
    r"""Say in one short line what may be a long text of others; of an error without a text its kind.

    >>> brief("a\nb"), len(brief("x" * 1000)), brief(KeyError())
    ('a b', 300, 'KeyError')
    """
    return " ".join(str(text).split())[:300] or type(text).__name__


@contextmanager
def reading(place: str | os.PathLike[str]) -> Iterator[None]:
    """Call a place that the operating system does not let us read a CheckpointError, in one line.

    >>> with reading("runs/a"):
    ...     open("/")
    Traceback (most recent call last):
    ...
    purerun.checkpoint.error.CheckpointError: runs/a: cannot be read: Is a directory; look who may read it, ...
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{place}: cannot be read: {cause(error)}; look who may read it, or choose another place"
        ) from error


@contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Call a place that the operating system does not let us write a SaveError, in one line.

    >>> with writing("runs/a"):
    ...     open("/", "w")
    Traceback (most recent call last):
    ...
    purerun.checkpoint.error.SaveError: runs/a: cannot be written: Is a directory; free space or choose another place
    """
    try:
        yield
    except OSError as error:
        raise SaveError(f"{place}: cannot be written: {cause(error)}; free space or choose another place") from error


def cause(error: OSError) -> str:
    """Say what the operating system says, without the path, which is said already and may be long."""
    return brief(error.strerror or error)
