"""Worker processes: torch's own, told to leave the signals of the terminal to the main process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from purerun.data.fetch import Fetch
from purerun.data.parcel import Parcel, parcel
from purerun.data.plan import Task


class Workers:
    """A pool of processes that makes batches in order.

    Args:
        fetch: what makes a batch.
        count: processes.
        prefetch: batches in work ahead, for each process.
        persistent: keep the processes from one `batches` to the next.
        pin_memory: copy batches into page-locked memory, where there is an accelerator.
    """

    def __init__(self, fetch: Fetch, *, count: int, prefetch: int, persistent: bool, pin_memory: bool) -> None:
        self._tasks = _Tasks()
        self._iterator: Any = None
        self._loader = DataLoader(
            _Parcels(fetch),
            sampler=self._tasks,
            batch_size=None,
            num_workers=count,
            collate_fn=_as_it_is,
            pin_memory=pin_memory and torch.accelerator.is_available(),
            worker_init_fn=leave_signals_to_the_main_process,
            # Without a generator of its own a DataLoader draws from the global one.
            generator=torch.Generator(),
            prefetch_factor=prefetch,
            persistent_workers=persistent,
        )

    def batches(self, tasks: Iterator[Task]) -> Iterator[Any]:
        """Make the batches of some tasks, in their order."""
        self._tasks.upcoming = tasks
        with _held_back():
            self._iterator = iter(self._loader)
        return map(Parcel.unwrapped, self._iterator)

    def close(self) -> None:
        """Stop the processes now.

        Left to the garbage collector, they may outlive this process's last line, and die noisily.
        """
        if self._iterator is not None:
            self._iterator._shutdown_workers()


class _Parcels(Dataset[Parcel]):
    """What a DataLoader takes for its dataset: in a worker, a map from tasks to batches."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    def __getitem__(self, index: Task) -> Parcel:
        return parcel(self._fetch[index])


class _Tasks(Iterable[Task]):
    """What a DataLoader takes for its sampler: in the main process, so it can be changed between epochs."""

    def __init__(self) -> None:
        self.upcoming: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.upcoming


def _as_it_is(batch: Any) -> Any:
    return batch


def leave_signals_to_the_main_process(_worker: int) -> None:
    """Make a worker ignore Ctrl-C and SIGUSR1, and any SIGTERM that its parent did not send.

    Terminals and schedulers send these to whole groups of processes.  The main process then
    wants to finish its iteration and to save, for which it needs its workers; it stops them
    itself when it is done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # What came before this line was held back, and is dropped now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGUSR1})
    # Only Linux lets a thread wait for a signal and its sender; elsewhere SIGTERM keeps ending a worker.
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent, daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back while workers are made, which inherit that, until they have learnt what to ignore."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    # Not by the signal: torch reports a worker that died of one as an error, even while Python exits.
    os._exit(0)
