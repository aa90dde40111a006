"""Signals that stop a run, sent to real processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

import purerun as pr
from purerun.cli import main

CLOCKS = ("time", "data_time", "eta", "timestamp", "memory")

# Slow enough that a signal comes in the middle: 120 iterations of 30 ms.
SLOW = ("--set", "epochs=40", "--set", "loss.wait=0.03", "--set", "checkpoint=7 iters")


def lines(directory):
    """Read a log without what clocks say."""
    read = map(json.loads, (Path(directory) / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read]


@pytest.fixture
def slow(recipe):
    """A recipe whose loss can wait."""
    text = Path(recipe).read_text()
    Path(recipe).write_text("import functools\n" + text.replace("loss=loss", "loss=functools.partial(loss, wait=0.0)"))
    return recipe


def under_way(process, directory, count=6):
    """Wait until a run has written some lines of its log."""
    log = Path(directory) / "log.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") >= count:
            return
        if process.poll() is not None:
            pytest.fail(f"ended early: {process.communicate()}")
        time.sleep(0.05)
    pytest.fail("did not begin")


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_and_resume_is_the_run_in_one_go(command, start, slow, workers):
    """The signal goes to the whole group, as a terminal sends it; workers outlive it."""
    more = ("--set", f"train.workers={workers}")
    stopped = start("train", slow, *SLOW, *more)
    under_way(stopped, "runs/tiny")
    os.killpg(stopped.pid, signal.SIGINT)
    out, err = stopped.communicate(timeout=60)

    assert (130, "") == (stopped.returncode, out)
    assert "go on with --resume" in err
    assert "Traceback" not in err
    done = int(pr.load("runs/tiny")["iter"])
    assert 0 < done < 120

    # Pauses are no part of what is computed.
    fast = ("--set", "epochs=40", "--set", "checkpoint=7 iters", "--set", "loss.wait=0.0", *more)
    resumed = command("train", slow, *fast, "--resume")
    whole = command("train", slow, *fast, "--work-dir", "whole")
    assert (0, 0) == (resumed[0], whole[0])
    assert whole[1] == resumed[1]
    assert lines("whole") == lines("runs/tiny")


def test_sigterm_saves_and_ends_with_its_code(start, slow):
    """As a scheduler takes a job away."""
    process = start("train", slow, *SLOW)
    under_way(process, "runs/tiny")
    process.terminate()
    _, err = process.communicate(timeout=60)
    log = lines("runs/tiny")

    assert 143 == process.returncode
    assert "Traceback" not in err
    assert max(line["iter"] for line in log) == int(pr.load("runs/tiny")["iter"])


def test_a_second_signal_ends_at_once(start, slow):
    """Without waiting for an iteration that may never end."""
    text = Path(slow).read_text()
    Path(slow).write_text(text.replace("time.sleep(wait)", "open('inside', 'w').close(); time.sleep(wait)"))
    process = start("train", slow, "--set", "loss.wait=600")
    while not Path("inside").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = next(line for line in process.stderr if "stopping after this iteration" in line)
    process.send_signal(signal.SIGINT)

    assert "once more stops at once" in told
    assert 130 == process.wait(timeout=30)


@pytest.fixture
def _handlers_kept():
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.usefixtures("_handlers_kept")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_before_the_first_iteration_ends_at_once(recipe, capsys, name, code):
    """There is nothing to save yet."""
    text = Path(recipe).read_text()
    Path(recipe).write_text(f"import signal\nsignal.raise_signal(signal.{name})\n{text}")
    with pytest.raises(SystemExit) as caught:
        main(["train", recipe])

    assert code == caught.value.code
    assert "purerun: stopped; there was nothing to save\n" == capsys.readouterr().err


@pytest.mark.usefixtures("_handlers_kept")
@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["train", "none.py"], 2)])
def test_main_exits_with_the_code_of_the_command(capsys, words, code):
    """For the shell."""
    with pytest.raises(SystemExit) as caught:
        main(words)

    assert code == caught.value.code
