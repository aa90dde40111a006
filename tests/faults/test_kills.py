"""SIGKILL at any moment: nothing good is lost, and the run that goes on ends as the one that was left alone.

What is random follows from a seed, but only the machine knows how far a process had come when it died.  What is not
is exact: in each iteration, and before each change of the disk that a save makes.
"""

from __future__ import annotations

import shutil
import signal
from itertools import count
from pathlib import Path
from random import Random

import pytest

from tests.faults.chain import Chain
from tests.faults.conftest import Start, Whole
from tests.faults.moments import drawn, saving
from tests.faults.runs import Run

KILLS, INSIDE = 20, 5  # in one test: so many, and so many of these inside of a save at least
LINKS = 8  # kills in a chain, at most


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 36))])
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(start: Start, whole: Whole, tmp_path: Path, seed: int):
    """At least 20 kills, and at least 5 inside of a save, in chains of up to 8."""
    dice, kills, inside = Random(seed), 0, 0
    while kills < KILLS or inside < INSIDE:
        print(f"seed {seed}, after {kills} kills:")
        chain, links = Chain(start, whole, tmp_path / f"after_{kills}"), dice.randint(1, LINKS)
        while chain.kills < links and chain.strike(moment=drawn(dice)):
            pass
        chain.finish()
        kills, inside = kills + chain.kills, inside + chain.inside
        assert kills < 3 * KILLS


def test_a_process_of_its_own_is_no_other_than_a_fork(start: Start, whole: Whole, tmp_path: Path):
    """As a user starts it: killed twice while it saves, and in the end left alone."""
    chain = Chain(start, whole, tmp_path)
    for seed in range(2):
        assert chain.strike(moment=saving(Random(seed)), fresh=True)
    chain.finish(fresh=True)


def test_a_run_killed_in_each_iteration_goes_on_to_the_same_end(start: Start, whole: Whole, tmp_path: Path):
    """Many resumes within an epoch, and within a window of accumulation."""
    chain = Chain(start, whole, tmp_path)
    for iteration in whole.digests:
        assert chain.strike(env={"DIE_AT": str(iteration)})
    chain.finish()


@pytest.mark.parametrize("iteration", [1, 7, 16, 31])
def test_a_run_killed_over_and_over_before_it_gets_on(start: Start, whole: Whole, tmp_path: Path, iteration: int):
    """In the first iteration after the checkpoint: each resume but the last leads nowhere."""
    chain = Chain(start, whole, tmp_path)
    for _ in range(4):
        assert chain.strike(env={"DIE_AT": str(iteration)})
    chain.finish()


def test_a_run_killed_before_each_change_of_the_disk(start: Start, whole: Whole, tmp_path: Path):
    """The first change after a resume, the second, ...: files begun, renamed and removed, several saves long."""
    chain = Chain(start, whole, tmp_path)
    for step in count(1):
        where = {"DIE_AT": str(chain.newest + 1), "DIE_STEP": str(step)}
        if not chain.strike(env=where):
            break
    chain.finish()

    assert chain.kills >= 20


def test_a_run_killed_before_each_change_of_the_disk_at_its_end(start: Start, whole: Whole, tmp_path: Path):
    """The last state, the last line of the log, the last removals: all else is on the disk before."""
    run = Run(tmp_path / "run")
    last = start(env={"HOLD_AT": "45"})
    last.held()
    assert last.until(lambda: run.stands(8, 40, 42, 44))
    last.send(signal.SIGKILL)
    assert -signal.SIGKILL == last.code
    for step in count(1):
        chain = Chain(start, whole, tmp_path / f"step_{step}")
        shutil.copytree(run.directory, chain.folder / "run")
        died = chain.strike(env={"DIE_AT": "45", "DIE_STEP": str(step)})
        chain.finish()
        if not died:
            break

    assert step > 10
