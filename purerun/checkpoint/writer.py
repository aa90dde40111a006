"""A thread that writes, so that a run need not wait for the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Writer:
    """Does jobs in their order on one thread of its own, which begins with the first job.

    Args:
        room: how many jobs may wait while one is done; whoever brings another one waits too.

    >>> done = []
    >>> writer = Writer()
    >>> for number in range(5):
    ...     writer.hand_over(lambda number=number: done.append(1 / number))
    >>> writer.close()
    >>> done, writer.failures()
    ([1.0, 0.5, 0.3333333333333333, 0.25], [ZeroDivisionError('division by zero')])
    """

    def __init__(self, room: int = 1) -> None:
        self._room = room
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        # Futures only: a job that is done must not keep the state that it has written.
        self._jobs: deque[Future[None]] = deque()

    def hand_over(self, job: Callable[[], None]) -> None:
        """Have a job done; returns at once unless too many are waiting."""
        wait(list(self._jobs)[: len(self._jobs) - self._room])
        self._jobs.append(self._thread.submit(job))

    def failures(self) -> list[BaseException]:
        """Tell what jobs that are done have raised, each once; costs next to nothing."""
        failed: list[BaseException] = []
        while self._jobs and self._jobs[0].done():
            if (error := self._jobs.popleft().exception()) is not None:
                failed.append(error)
        return failed

    def close(self) -> None:
        """Wait until all jobs are done."""
        self._thread.shutdown(wait=True)
