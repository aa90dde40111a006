"""What goes wrong in this room."""

from __future__ import annotations


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
