"""A directory that one process has for itself: two runs that write into one place would spoil both."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from purerun.sinks.desk import SinkError

try:
    import fcntl
except ImportError:  # not there on Windows, where nobody is kept out
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_TAKEN = {errno.EACCES, errno.EAGAIN}


@contextmanager
def claimed(directories: Iterable[Path]) -> Iterator[None]:
    """Have directories for this process alone, for a while.

    The lock belongs to the process: it ends with it, however that dies, and a worker that was forked has no part in
    it.  Where there can be no lock, in a directory that cannot be written or on a file system that has none, nobody
    is kept out.

    Raises:
        SinkError: another process has one of them.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with claimed([Path(folder)]):
    ...         print(os.listdir(folder))
    ...     print(os.listdir(folder))
    ['.lock']
    []
    """
    with ExitStack() as held:
        for directory in directories:
            held.enter_context(_claimed(directory))
        yield


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    file = directory / LOCK
    handle = _locked(file)
    if handle is None:
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # the directory is gone, or cannot be written any more
            if _is_at(handle, file):
                file.unlink()
        os.close(handle)


def _locked(file: Path) -> int | None:
    """Open and lock a file; None if it cannot be."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None  # whatever is written there will say why
        if not _lock(handle, file):
            os.close(handle)
            return None
        if _is_at(handle, file):
            return handle
        os.close(handle)  # whoever had it has removed it meanwhile


def _lock(handle: int, file: Path) -> bool:
    """Lock an open file; False if it cannot be."""
    if fcntl is None:
        return False
    try:
        # Not `flock`, which a forked worker would hold on to after the process is killed.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _TAKEN:
            return False
        os.close(handle)
        raise SinkError(
            f"{file.parent} is in use: another process trains a run there; wait until it ends, stop it, or choose "
            "another place"
        ) from error
    return True


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False
