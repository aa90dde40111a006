"""A file of JSON lines that only grows, and is cut when a run goes back."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from purerun.checkpoint import JSON
from purerun.sinks.desk import SinkError


class LostLines(UserWarning):
    """A log is shorter than its checkpoint says."""


def encoded(value: float) -> float | str:
    """Write a number so that every JSON reader takes it, and `float(...)` reads it back.

    JSON has no NaN and no infinities: they become the strings "nan", "inf" and "-inf".

    >>> encoded(0.1), encoded(float("nan")), float(encoded(float("-inf")))
    (0.1, 'nan', -inf)
    """
    return value if math.isfinite(value) else str(value)


class LineFile:
    """An open file of lines; each has left this process when `append` returns.

    Raises:
        SinkError: it holds something, and neither is the run resumed nor may it be overwritten.
    """

    def __init__(self, path: Path, *, resumed: bool, overwrite: bool) -> None:
        self.path, self._overwrite = path, overwrite
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab", buffering=0)
        if not resumed:
            self._begin()

    def append(self, line: Mapping[str, JSON]) -> None:
        """Write one line."""
        self._stream.write((json.dumps(line, allow_nan=False) + "\n").encode())

    def size(self) -> int:
        """Say how long it is, in bytes, once all of that is on the disk."""
        os.fsync(self._stream.fileno())
        return self._length()

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
        """Let go of it."""
        self._stream.close()

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
