"""The streams of a command: what happens when nobody reads them, or nothing can be written there."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_STREAMS = (1, 2)


def opened() -> None:
    """Make results and messages writable in any case.

    A stream that was closed when the process began is one into nothing; a name that the encoding of a terminal does
    not have is written with escapes.
    """
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def deaf() -> bool:
    """Say whether whoever has read stdout or stderr reads no more, as `head` does when it has its lines."""
    poll = select.poll()
    for handle in _STREAMS:
        poll.register(handle, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def end_unheard() -> NoReturn:
    """End as programs do whose reader is gone: by SIGPIPE, without a word."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(128 + signal.SIGPIPE)  # where somebody has blocked the signal


def drop() -> None:
    """Let go of results that cannot be written: Python would try again when it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
