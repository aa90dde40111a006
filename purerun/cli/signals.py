"""Signals that stop a run: the first one after an iteration, so that it can be saved; the second at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any


class Stop:
    """A `with` block in which SIGINT, SIGTERM and SIGUSR1 only set a flag, which a loop reads after each iteration.

    SIGUSR1 is what schedulers send to say that the time is up soon; it means what SIGTERM means.
    Nothing is saved inside a handler: it may run anywhere, also in the middle of a write.

    >>> with Stop() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop(), stop.code
    (True, 143)
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received: int | None = None
        self._process = os.getpid()

    def __call__(self) -> bool:
        """Say whether a signal has come."""
        return self._received is not None

    @property
    def code(self) -> int:
        """The exit code: 130 after SIGINT, 143 after the others, 0 without a signal."""
        return 0 if self._received is None else _code(self._received)

    def __enter__(self) -> Stop:
        self._before: dict[int, Any] = {each: signal.signal(each, self._receive) for each in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        # A process that the run has forked inherits this handler, and ends as it would without.
        if self._received is not None or os.getpid() != self._process:
            os._exit(_code(number))
        self._received = number
        # Not print(), which may be in the middle of printing.
        os.write(2, b"\npurerun: stopping after this iteration; once more stops at once, without saving\n")


def _code(number: int) -> int:
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
