"""A file of JSON lines that only grows, and is cut when a run goes back."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs

from purerun.checkpoint import JSON, SaveError
from purerun.sinks.desk import SinkError


class LostLines(UserWarning):
    """A log is not what its checkpoint says."""


@attrs.frozen
class Mark:
    """How far a file of lines had come, as a checkpoint keeps it.

    Attributes:
        bytes: its length.
        sha256: of these bytes: a file that begins with them is the one that is meant.

    >>> mark = Mark.of(b"a line")
    >>> mark.bytes, mark.begins(b"a line, and more"), mark.begins(b"another"), mark.begins(b"a")
    (6, True, False, False)
    """

    bytes: int
    sha256: str

    @classmethod
    def of(cls, text: bytes) -> Mark:
        """Mark the end of a text."""
        return cls(len(text), sha256(text).hexdigest())

    def begins(self, text: bytes) -> bool:
        """Say whether a text begins with what was marked."""
        return Mark.of(text[: self.bytes]) == self


def marked(memory: Any) -> Mark | None:
    """Read the mark in what a log remembers; None if it remembers no file."""
    if memory is None or memory["bytes"] is None:
        return None
    # A checkpoint of before there were such hashes has none: nothing is known to begin with its bytes.
    return Mark(memory["bytes"], memory.get("sha256", ""))


class LineFile:
    """An open file of lines; each has left this process when `append` returns.

    Lines that the disk does not take are kept, and written with the next one.

    Args:
        path: where it is; made with its folders.
        kept: what it begins with; whatever else is in it is cut.

    Raises:
        SinkError: something else is there, or in the way.
        SaveError: it cannot be written.
    """

    def __init__(self, path: Path, kept: bytes) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab", buffering=0)
            self._stream.truncate(len(kept))
        except OSError as error:
            raise refused(path, error) from error
        self._size, self._hash = len(kept), sha256(kept)
        self._pending, self._stuck = b"", False

    def append(self, line: Mapping[str, JSON]) -> None:
        """Write one line.

        Raises:
            SaveError: the disk does not take it; it is kept.
        """
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        self._size += len(text)
        self._hash.update(text)
        self._pending += text
        self._flush()

    def mark(self) -> Mark:
        """Say how far it has come, with the lines that are still to be written."""
        return Mark(self._size, self._hash.hexdigest())

    def sync(self) -> None:
        """Wait until all lines are on the disk; another thread may ask for it.

        Raises:
            SaveError: they cannot be written, or the file is gone.
        """
        if self._stuck:
            raise SaveError(f"{self.path}: lines of it could not be written; free space or choose another place")
        try:
            there = os.path.samestat(os.fstat(self._stream.fileno()), self.path.stat())
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise SaveError(f"{self.path}: cannot be written: {error}") from error
        if not there:
            raise SaveError(f"{self.path}: expected the file that this run writes, found another; leave it in place")

    def close(self) -> None:
        """Let go of it.

        Raises:
            SaveError: lines are left that cannot be written.
        """
        try:
            self._flush()
        finally:
            self._stream.close()

    def _flush(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[self._stream.write(self._pending) :]
            self._stuck = False
        except OSError as error:
            self._stuck = True
            raise refused(self.path, error) from error


def begun(path: Path, *, overwrite: bool) -> LineFile:
    """Begin a file of lines.

    Raises:
        SinkError: it holds something that may not be overwritten, or something else is there.
        SaveError: it cannot be written.
    """
    refuse_others(path, overwrite=overwrite)
    return LineFile(path, b"")


def refuse_others(path: Path, *, overwrite: bool) -> None:
    """Make sure that a file of lines may be begun.

    Raises:
        SinkError: it holds something that may not be overwritten, or something else is there.
        SaveError: it cannot be read.
    """
    # Read in any case: what is no file cannot be replaced.
    if written(path) and not overwrite:
        raise SinkError(
            f"{path} holds the log of another run; go on with it (watch(..., resume=...)), replace it "
            "(watch(..., overwrite=True)), or choose another place"
        )


def gone_on(path: Path, mark: Mark | None, *, own: bool, overwrite: bool) -> LineFile:
    """Go on with a file of lines: what lies after the mark is cut.

    A file that does not begin with what was marked is another run's, unless the checkpoint lies in the directory of
    this one: then its whole lines stay, as far as the mark, and a warning says so.

    Args:
        path: where it is.
        mark: how far it had come at the checkpoint; None if that knows nothing of this file.
        own: whether the checkpoint is one of the run whose directory it lies in.
        overwrite: whether it may be replaced if it is another run's.

    Raises:
        SinkError: it is another run's, and may not be overwritten, or something else is there.
        SaveError: it cannot be written.
    """
    text = written(path)
    if mark is None or not (own or mark.begins(text)):
        return begun(path, overwrite=overwrite)
    kept = text[: mark.bytes]
    # Of an old checkpoint only the length is known.
    if not mark.begins(text) and (mark.sha256 or len(kept) < mark.bytes):
        found = f"{len(kept)}" if len(kept) < mark.bytes else "others"
        warnings.warn(LostLines(f"{path}: expected {mark.bytes} bytes of log, found {found}"), stacklevel=2)
        kept = kept[: kept.rfind(b"\n") + 1]
    return LineFile(path, kept)


def written(path: Path) -> bytes:
    """Read all that is in a file; nothing of one that is not there.

    Raises:
        SinkError: it is no file.
        SaveError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise refused(path, error) from error


def refused(path: Path, error: OSError) -> SinkError | SaveError:
    """Say that a file cannot be used: what is in its way is somebody's mistake, a disk that refuses is nobody's."""
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return SinkError(f"{path}: expected a file in a folder, found something else: {error}; choose another place")
    return SaveError(f"{path}: cannot be written: {error}; free space or choose another place")
