"""Processes that talk by gloo and do what a test asks; forked from one that has imported torch already."""

from __future__ import annotations

import faulthandler
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import purerun as pr

PATIENCE = 60  # seconds; the longest call takes five
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch.distributed", "purerun.recipe", "purerun.wrappers", "purerun.testing"])


class Team:
    """Some processes of one run, each with a pipe to the test."""

    def __init__(self, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._pipes, self.processes = [], []
        for rank in range(count):
            ours, theirs = _FORKS.Pipe()
            arguments = (theirs, Path(self._folder.name) / "meeting", rank, count)
            process = _FORKS.Process(target=_obey, args=arguments)  # no daemon: those may have no workers
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function in all processes at once; list what it gave, or what went wrong."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        return [_answer(pipe) for pipe in self._pipes]

    def close(self) -> None:
        """Send the processes home."""
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:
                continue
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def _answer(pipe: Any) -> Any:
    if not pipe.poll(PATIENCE + 10):
        return "no answer"
    try:
        return pipe.recv()
    except EOFError:
        return "gone"


def _obey(pipe: Any, meeting: Path, rank: int, count: int) -> None:
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    while (order := pipe.recv()) is not None:
        function, arguments = order
        # Who waits for ever for another one says where, and ends.
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            pipe.send(function(*arguments))
        except Exception as error:  # noqa: BLE001 - the test wants to see it
            pipe.send(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        faulthandler.cancel_dump_traceback_later()
    if count > 1:
        pr.processes.wait()
        dist.destroy_process_group()
