"""What people call a place: a path of this machine, or a URL of another one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from purerun.checkpoint.error import CheckpointError, brief

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^/]+)?://.+")
_HERE = re.compile(r"(file|local)://")
# A Path has made one slash of the two.  A drive of Windows has a single letter.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[^/]+)?:/")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is a URL of another place than this machine.

    >>> is_url("s3://bucket/run"), is_url("file:///runs/a"), is_url("runs/a")
    (True, False, False)
    """
    return isinstance(path, str) and bool(_URL.fullmatch(path)) and not _HERE.match(path)


def has_scheme(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is a URL of any place, or was one before it became a `Path`.

    What only a directory of this machine can hold, as all that a run writes, is refused there.

    >>> has_scheme("s3://bucket/run"), has_scheme(Path("file:///runs/a")), has_scheme("runs/a"), has_scheme("/a:/b")
    (True, True, False, False)
    """
    return bool(_SCHEME.match(os.fspath(path)))


def local(path: str | os.PathLike[str]) -> Path:
    """Read a path of this machine, which may be written as a URL of it.

    Raises:
        CheckpointError: no file can have this name, or it is the URL of something else.

    >>> local("runs/a") == local(Path("runs/a")) == local("file://runs/a")
    True
    >>> local("")
    Traceback (most recent call last):
    ...
    purerun.checkpoint.error.CheckpointError: expected a path, got '' (nothing); choose another name
    """
    text = _HERE.sub("", os.fspath(path), count=1) if isinstance(path, str) else os.fspath(path)
    if odd := _odd(text):
        raise CheckpointError(f"expected a path, got {text!r} ({odd}); choose another name")
    if has_scheme(text):
        raise CheckpointError(
            f"expected a path of this machine, got {text!r}; URLs, as plain texts, are for pr.save, pr.load and "
            "what reads weights"
        )
    return Path(text)


def _odd(text: str) -> str:
    """Say why no file can have a name, as far as the name alone tells."""
    if not text:
        return "nothing"
    try:
        text.encode()  # safetensors reads no file whose path is not UTF-8
    except UnicodeEncodeError as error:
        return brief(error)
    return "a null character in it" if "\0" in text else ""
