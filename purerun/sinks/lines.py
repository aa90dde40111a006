"""A file of JSON lines that only grows, and is cut when a run goes back."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from purerun.checkpoint import JSON, SaveError
from purerun.sinks.desk import SinkError


class LostLines(UserWarning):
    """A log is shorter than its checkpoint says."""


class LineFile:
    """An open file of lines; each has left this process when `append` returns.

    Lines that the disk does not take are kept, and written with the next one.

    Raises:
        SinkError: it holds something, and neither is the run resumed nor may it be overwritten.
    """

    def __init__(self, path: Path, *, resumed: bool, overwrite: bool) -> None:
        self.path, self._overwrite = path, overwrite
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab", buffering=0)
        self._pending, self._stuck = b"", False
        if not resumed:
            self._begin()

    def append(self, line: Mapping[str, JSON]) -> None:
        """Write one line.

        Raises:
            SaveError: the disk does not take it; it is kept.
        """
        self._pending += (json.dumps(line, allow_nan=False) + "\n").encode()
        self._flush()

    def size(self) -> int:
        """Say how long it is, in bytes, with the lines that are still to be written."""
        return self._length() + len(self._pending)

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

    def lines_after(self, size: int) -> int:
        """Count the whole lines after the first `size` bytes."""
        return self.path.read_bytes()[size:].count(b"\n")

    def go_on(self, size: int | None) -> None:
        """Take away what lies after the first `size` bytes; warn if there are not so many.

        Args:
            size: its length at the checkpoint; None if that knows nothing of this file.

        Raises:
            SinkError: the file holds something of which the checkpoint knows nothing.
        """
        if size is None:
            self._begin()
            return
        have = self._length()
        if have < size:
            warnings.warn(LostLines(f"{self.path}: expected {size} bytes of log, found {have}"), stacklevel=2)
            size = self.path.read_bytes().rfind(b"\n") + 1
        self._stream.truncate(size)

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
            raise SaveError(f"{self.path}: cannot be written: {error}; free space or choose another place") from error

    def _begin(self) -> None:
        if self._length() and not self._overwrite:
            self.close()
            raise SinkError(
                f"{self.path} holds the log of another run; go on with it (watch(..., resume=...)), replace it "
                "(watch(..., overwrite=True)), or choose another place"
            )
        self._stream.truncate(0)

    def _length(self) -> int:
        return os.fstat(self._stream.fileno()).st_size
