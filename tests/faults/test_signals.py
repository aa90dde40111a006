"""Signals that ask a run to stop, sent as terminals and schedulers send them: to all processes of the group at once."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random

import pytest

import purerun as pr
from tests.faults.conftest import Start, Whole
from tests.faults.moments import going_on, pointing, saving
from tests.faults.runs import Run

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
STOPS = 6
WORKERS = ("--set", "train.workers=2")


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_a_stop_saves_the_iteration_and_leaves_nobody_behind(
    start: Start, whole: Whole, tmp_path: Path, number: int, code: int
):
    """With two workers alive, in the middle of an iteration, an epoch and a window of accumulation."""
    run = Run(tmp_path / "run")
    stopped = start(*WORKERS, env={"HOLD_AT": "20"})
    stopped.held()
    assert 3 == len(stopped.group)
    stopped.send_all(number)
    assert stopped.until(lambda: "stopping after this iteration" in stopped.err)
    stopped.let_go()

    assert (code, "") == (stopped.code, stopped.out)
    assert [] == stopped.group
    assert "Traceback" not in stopped.err
    assert "go on with --resume" in stopped.err
    assert 20 == run.newest()
    assert whole.digests[20] == pr.digest(pr.load(run.directory))
    whole.same(run, start("--resume", *WORKERS))


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_stops_at_any_moment_lead_to_the_same_end(start: Start, whole: Whole, tmp_path: Path, number: int, code: int):
    """One after the other; each ends with its code, or is too late."""
    dice, run = Random(number), Run(tmp_path / "run")
    for _ in range(STOPS):
        moment, command = dice.choice([going_on, saving, pointing])(dice), start("--resume", *WORKERS)
        if moment.come(command, run):
            command.send_all(number)
        assert command.code in (0, code), command.err
        assert [] == command.group
        assert "Traceback" not in command.err
        whole.good(run)
    whole.same(run, start("--resume", *WORKERS))


@pytest.mark.parametrize("where", ["HOLD_AT", "HANG_AT"])
@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_a_second_signal_ends_at_once(start: Start, whole: Whole, tmp_path: Path, where: str, number: int, code: int):
    """In an iteration that does not end, or a save that does not: what was good stays so."""
    run = Run(tmp_path / "run")
    stuck = start(env={where: "21"})
    stuck.held()
    assert stuck.until(lambda: where == "HANG_AT" or run.stands(8, 16, 18, 20))
    before = run.newest()
    stuck.send_all(number)
    assert stuck.until(lambda: "once more stops at once" in stuck.err)
    stuck.send_all(number)

    assert code == stuck.code
    assert before <= run.newest()
    whole.same(run, start("--resume"))
