"""A directory that one process has for itself, against another process that locks as POSIX says."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager

import pytest

import purerun as pr
from purerun.sinks import SinkError
from purerun.sinks.claim import LOCK, claimed
from purerun.testing import counted
from tests.sinks import runs

if sys.platform == "win32":
    pytest.skip("nobody is kept out there", allow_module_level=True)

OTHER = """
import fcntl, sys
file = open(sys.argv[1], "a")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(7)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def other(folder):
    """Another process that has the lock; it gives it up when it is killed."""
    words = [sys.executable, "-S", "-c", OTHER, str(folder / LOCK)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert "locked\n" == process.stdout.readline()
        yield process
        process.kill()


def is_taken(folder):
    """Ask another process."""
    words = [sys.executable, "-S", "-c", OTHER, str(folder / LOCK)]
    return 7 == subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode


def watched(folder, **more):
    sinks = pr.sinks.Log(every=1, path=folder / "log.jsonl", console=False), pr.sinks.Checkpoint(folder)
    return pr.watch(iter([counted(iter=1), counted(iter=2)]), *sinks, **more)


def test_a_directory_in_which_another_process_trains_is_left_alone(tmp_path):
    """Whatever was asked for; once the other one is dead, it is free."""
    (tmp_path / "log.jsonl").write_text("its line\n")
    with other(tmp_path) as process:
        for more in ({}, {"overwrite": True}):
            with pytest.raises(SinkError, match=r"is in use: another process trains a run there; .*another place"):
                next(watched(tmp_path, **more))
        before = sorted(path.name for path in tmp_path.iterdir()), (tmp_path / "log.jsonl").read_text()
        process.kill()
        process.wait()
        assert 2 == int(runs.drain(watched(tmp_path, overwrite=True))["iter"])

    assert ([LOCK, "log.jsonl"], "its line\n") == before


def test_a_run_has_its_directory_for_itself_while_it_is_watched(tmp_path):
    """From the first state to the end; then nothing of the lock is left."""
    states = watched(tmp_path)
    next(states)
    during = is_taken(tmp_path)
    states.close()

    assert during
    assert ["checkpoints", "log.jsonl"] == sorted(path.name for path in tmp_path.iterdir())


def test_what_only_looks_on_claims_nothing(tmp_path):
    """Logs of several runs may lie in one folder."""
    with other(tmp_path):
        log = pr.sinks.Log(every=1, path=tmp_path / "a.jsonl", console=False)
        runs.drain(pr.watch(iter([counted(iter=1)]), log, pr.sinks.Progress()))

    assert [1] == [line["iter"] for line in runs.lines(tmp_path / "a.jsonl")]


def test_where_there_can_be_no_lock_nobody_is_kept_out(tmp_path):
    """A folder of that name, or no folder at all: whatever is written there says why it cannot be."""
    (tmp_path / LOCK).mkdir()
    (tmp_path / "file").touch()
    with claimed([tmp_path, tmp_path / "file"]):
        pass

    assert ["file", LOCK] == sorted((path.name for path in tmp_path.iterdir()), reverse=True)


def test_the_lock_of_somebody_else_is_not_removed(tmp_path):
    """When the directory was removed meanwhile, and another process has made it anew."""
    run = tmp_path / "run"
    with claimed([run]):
        (run / LOCK).unlink()
        with other(run):
            before = (run / LOCK).stat().st_ino
            assert is_taken(run)
        taken = (run / LOCK).stat().st_ino

    assert before == taken == (run / LOCK).stat().st_ino
