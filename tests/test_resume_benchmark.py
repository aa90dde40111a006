"""benchmarks/resume.py: it sees what resuming can do wrong, and sees nothing of the kind in purerun."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def compared(monkeypatch):
    """Compare a run with one that was never stopped: an epoch of three steps, whose loss is a sample's number.

    A run is given as its processes: the step at which each begins, and the samples of its steps.
    """
    monkeypatch.syspath_prepend(BENCHMARKS)
    compare, tape = import_module("resuming.compare"), import_module("resuming.tape")

    def outcome(parts, weight):
        lines = tuple(
            tuple(
                tape.Line(step, epoch=0, seconds=0.0, samples=samples, loss=float(samples[0]))
                for step, samples in enumerate(steps, begin)
            )
            for begin, steps in parts
        )
        return compare.Outcome(lines, {"weight": np.array([weight], np.float32)})

    whole = outcome([(0, [(0, 1), (2, 3), (4, 5)])], 1.0)
    return lambda *parts, weight=1.0: compare.verdict(whole, outcome(parts, weight), samples=6)


def test_a_run_that_goes_on_where_it_was_is_the_run_never_stopped(compared):
    """What was lost by a kill and done again does not count, for the second time is what the run is made of."""
    verdict = compared((0, [(0, 1), (2, 3)]), (1, [(2, 3), (4, 5)]))

    assert (True, 0.0, True, 0, 0, None, 1) == (
        verdict.weights,
        verdict.difference,
        verdict.order,
        verdict.twice,
        verdict.never,
        verdict.losses,
        verdict.again,
    )


def test_samples_that_come_again_or_never_are_counted(compared):
    """A loader that is shuffled anew gives some samples twice in the epoch, and leaves others out."""
    verdict = compared((0, [(0, 1)]), (1, [(1, 2), (0, 3)]))

    assert (False, 2, 2, 1) == (verdict.order, verdict.twice, verdict.never, verdict.losses)


def test_an_epoch_that_is_begun_anew_is_not_the_same_order(compared):
    """More steps than the run never stopped are other steps."""
    verdict = compared((0, [(0, 1)]), (1, [(0, 1), (2, 3), (4, 5)]))

    assert (False, 2, 0) == (verdict.order, verdict.twice, verdict.never)


def test_other_weights_are_seen_to_the_last_bit(compared):
    """Equal means the same bits: a float's neighbour is another float."""
    near = compared((0, [(0, 1), (2, 3), (4, 5)]), weight=np.nextafter(np.float32(1), np.float32(2)))

    assert not near.weights
    assert 2**-23 == near.difference


def test_a_failure_is_said_in_the_table_and_in_full_below(monkeypatch):
    """What a runner refuses to do is a result too."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    plan, runs, table = (import_module(f"resuming.{name}") for name in ("plan", "runs", "table"))
    message = "UnpicklingError: Weights only load failed, and so on"
    results = [runs.Result("Peer", plan.Scenario("late", 384, (40,)), failure=message)]

    for text in (table.plain(results), table.markdown(results)):
        assert 2 == text.count("UnpicklingError")
        assert f"Peer, late: {message}" == text.splitlines()[-1]


def test_purerun_goes_on_after_a_kill_as_if_nothing_had_happened():
    """The harness itself, at its smallest: a run that is killed within an epoch, and one that is not."""
    options = ["--quick", "--only", "purerun", "--scenarios", "kill", "--json"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "resume.py", *options], capture_output=True, text=True, timeout=110, check=False
    )
    result = json.loads(done.stdout)

    assert None is result["failure"], done.stderr
    assert result["resumed"][0] > 0
    assert {"weights": True, "difference": 0.0, "order": True, "twice": 0, "never": 0, "losses": None} == {
        name: value for name, value in result["verdict"].items() if name != "again"
    }
