"""A process of its own for each part of a run, so that a new process resumes, and a kill is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from resuming.asked import Asked
from resuming.tape import length

SCRIPT = Path(__file__).parent.parent / "resume.py"
SECONDS = 300
"""No part of a run takes so long, by far."""


class Failed(Exception):
    """A part of a run went wrong; the message is the runner's."""


def part(asked: Asked, *, kill: int | None = None) -> None:
    """Do one part of a run.

    Args:
        asked: what to do.
        kill: send SIGKILL to the whole process group, workers too, once so many steps are done.

    Raises:
        Failed: the process did not end as it should.
    """
    asked.folder.mkdir(parents=True, exist_ok=True)
    with asked.output.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "--part", asked.text],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=asked.folder,
            env=_environment(),
            start_new_session=True,
        )
    try:
        _wait(process, asked, kill)
    finally:
        _kill(process)
    if process.returncode != (0 if kill is None else -signal.SIGKILL):
        raise Failed(_message(asked) or f"exit code {process.returncode}")


def _environment() -> dict[str, str]:
    # One thread and no GPU, for all: the sums of floats are then the same in every process.
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _wait(process: subprocess.Popen[bytes], asked: Asked, steps: int | None) -> None:
    """Wait until the process has ended, or has done so many steps; not for ever."""
    end = time.monotonic() + SECONDS
    while process.poll() is None and (steps is None or length(asked.tape) < steps) and time.monotonic() < end:
        time.sleep(0.001 if steps else 0.02)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all its workers, as far as there still are any."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _message(asked: Asked) -> str:
    """Say what went wrong: the error, or the last words of a process that was ended by something else."""
    if asked.error.exists():
        return asked.error.read_text()
    return asked.output.read_text(errors="replace").strip().rpartition("\n")[2]
