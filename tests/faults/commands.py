"""Commands as real processes that tests watch, stop and kill: forked by a server, or started afresh."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

_PATIENCE = 60.0  # seconds; nothing here takes a tenth of that


@attrs.frozen(slots=False)
class Command:
    """A command as a process, the leader of a session and so of a process group of its own.

    Attributes:
        process: its id.
        folder: where it runs.
        reap: waits for its end; gives its exit code, or minus the signal that killed it.
    """

    process: int
    folder: Path
    reap: Callable[[], int]
    _handle: int = attrs.field(
        init=False, default=attrs.Factory(lambda self: os.pidfd_open(self.process), takes_self=True)
    )

    @cached_property
    def code(self) -> int:
        """How it ended, once it has: its exit code, or minus the signal that killed it."""
        if not self.ended(_PATIENCE):
            self._give_up()
        return self._reaped()

    @property
    def out(self) -> str:
        """What it has written to stdout."""
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        """What it has written to stderr."""
        return (self.folder / "err").read_text()

    @property
    def notes(self) -> list[str]:
        """What it has said there, a line each; not what others have written."""
        return [line.removeprefix("purerun: ") for line in self.err.splitlines() if line.startswith("purerun: ")]

    def send(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.process, number)

    def send_all(self, number: int) -> None:
        """Send a signal to it and its workers, as a terminal does."""
        os.killpg(self.process, number)

    def ended(self, within: float = 0.0) -> bool:
        """Wait so many seconds for its end, and say whether it came."""
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(1000 * within))

    def until(self, condition: Callable[[], object]) -> bool:
        """Wait until something holds; say whether it did before the command ended."""
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if self.ended(within=0.0002):
                return bool(condition())
            if time.monotonic() > deadline:
                self._give_up()
        return True

    def held(self) -> None:
        """Wait until it waits at a `HOLD_AT` or `HANG_AT` of the recipe."""
        assert self.until((self.folder / "held").exists), self.err

    def let_go(self) -> None:
        """End that waiting."""
        (self.folder / "held").unlink()
        (self.folder / "go").touch()

    @property
    def group(self) -> list[int]:
        """The processes of its group that are alive: neither ended nor waiting to be reaped."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # The name of a program stands in brackets, and may hold anything.
                state, _, leader = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(leader) == self.process and state not in "ZX":
                    found.append(int(entry.name))
        return found

    def emptied(self) -> bool:
        """Wait until no process of its group is alive; say whether that came true."""
        deadline = time.monotonic() + _PATIENCE
        while self.group and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.group

    def abandon(self) -> None:
        """Kill it and its workers, unless somebody has waited for its end: its id may be another's by now."""
        if "code" not in vars(self):
            self.send_all(signal.SIGKILL)
            self._reaped()

    def _reaped(self) -> int:
        os.close(self._handle)
        return self.reap()

    def _give_up(self) -> None:
        self.send(signal.SIGUSR2)  # a fork of the server then says what its threads are doing
        self.ended(within=1.0)
        self.send_all(signal.SIGKILL)
        pytest.fail(f"still running after {_PATIENCE} s; stderr: {self.err}")


class Server:
    """The process of `server.py`."""

    def __init__(self) -> None:
        script = [sys.executable, str(Path(__file__).with_name("server.py"))]
        self._process = subprocess.Popen(
            script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, bufsize=0
        )

    def start(
        self, *words: object, folder: Path, env: dict[str, str], largest: int | None = None, obedient: bool = False
    ) -> Command:
        """Start a command; see `server.become`."""
        request = {"words": [*map(str, words)], "folder": str(folder), "env": env}
        process = self._ask(start={**request, "largest": largest, "obedient": obedient})
        return Command(process, folder, lambda: self._ask(wait=process))

    def close(self) -> None:
        """End it."""
        with self._process:
            self._process.stdin.close()

    def _ask(self, **request: object) -> int:
        self._process.stdin.write((json.dumps(request) + "\n").encode())
        return int(self._process.stdout.readline())


def afresh(*words: object, folder: Path, env: dict[str, str]) -> Command:
    """Start a command as a user does, with a Python of its own."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "purerun", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env={**ENVIRONMENT, **env},
            start_new_session=True,
        )
    return Command(process.pid, folder, process.wait)
