"""The sequences that MMEngine's own tests assert, as specifications (base value 0.05, tolerance 1e-5)."""

from __future__ import annotations

import math

import attrs
import pytest

from purerun.schedule import (
    Constant,
    Cosine,
    CosineRestart,
    Exponential,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Step,
    values,
)

BASE = 0.05


def wave(k, steps, top=BASE, floor=0.0):
    return floor + (top - floor) * (1 + math.cos(math.pi * k / steps)) / 2


SEQUENCES = {
    "step": ([Step(3, 0.1)], [0.05] * 3 + [0.005] * 3 + [0.0005] * 3 + [0.00005]),
    "multi-step": ([MultiStep([2, 5, 9], 0.1)], [0.05] * 2 + [0.005] * 3 + [0.0005] * 4 + [0.00005]),
    "constant": ([Constant(1 / 2, end=5)], [0.025] * 4 + [0.05] * 6),
    "linear": ([Linear(1 / 2, end=5)], [0.025, 0.03125, 0.0375, 0.04375] + [0.05] * 6),
    "linear from 1": ([Linear(1 / 2, begin=1, end=6)], [0.05, 0.025, 0.03125, 0.0375, 0.04375] + [0.05] * 5),
    "exponential": ([Exponential(0.9)], [0.05 * 0.9**x for x in range(10)]),
    "cosine": ([Cosine(period=10, floor=1e-10)], [wave(x, 10, floor=1e-10) for x in range(12)]),
    "polynomial": (
        [Polynomial(0.9, floor=0.001, end=5)],
        [0.049 * (1 - x / 4) ** 0.9 + 0.001 for x in range(4)] + [0.001] * 6,
    ),
    "cosine with restarts": (
        [CosineRestart([4, 5], [1, 0.5])],
        [0.05, 0.0426776, 0.025, 0.00732233, 0.025, 0.022612712, 0.01636271, 0.0086372, 0.0023872, 0.0023872],
    ),
    "one-cycle linear": (
        [OneCycle(25, period=10, anneal="linear", final_div_factor=2)],
        [1, 13, 25, 21.5, 18, 14.5, 11, 7.5, 4, 0.5],
    ),
    "one-cycle in three phases": (
        [OneCycle(25, period=10, pct_start=0.4, anneal="linear", final_div_factor=4, three_phase=True)],
        [1, 9, 17, 25, 17, 9, 1, 0.75, 0.5, 0.25],
    ),
    "one-cycle cosine": (
        [OneCycle(25, period=10, final_div_factor=2)],
        [1, 13] + [wave(k, 7, 25, 0.5) for k in range(8)],
    ),
    "one after the other: linear, multi-step": (
        [Linear(1 / 2, end=5), MultiStep([3, 6], begin=5, end=12)],
        [0.025, 0.03125, 0.0375, 0.04375] + [0.05] * 4 + [0.005] * 3 + [0.0005],
    ),
    "one after the other: exponential, cosine": (
        [Exponential(0.9, end=5), Cosine(period=5, begin=5, end=10)],
        [0.05 * 0.9**x for x in range(5)] + [wave(k, 5, 0.05 * 0.9**4) for k in range(5)],
    ),
    "overlap: linear, multi-step": (
        [Linear(1 / 2, end=5), MultiStep([3, 6, 9], end=10)],
        [0.025, 0.03125, 0.0375, 0.004375] + [0.005] * 2 + [0.0005] * 3 + [0.00005],
    ),
    "a gap holds": (
        [Linear(1 / 2, end=5, end_factor=0.5), Exponential(0.5, begin=8)],
        [0.025] * 9 + [0.0125],
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("by", ["epoch", "iter"])
def test_sequence(name, by):
    """Each schedule gives MMEngine's sequence, by epoch and by iteration."""
    schedules, expected = SEQUENCES[name]
    schedules = [attrs.evolve(schedule, by=by) for schedule in schedules]

    assert pytest.approx(expected, abs=tolerance(expected), rel=0) == values(schedules, BASE, len(expected), 1)


def tolerance(expected):
    """The rounded sequences are right to 1e-5, as in MMEngine's tests; the others are formulas."""
    return 1e-5 if 0.0426776 in expected else 1e-12


@pytest.mark.parametrize("epoch_length", [7, 11])
def test_epochs_as_iterations(epoch_length):
    """A schedule by epoch turned into one by iteration changes one iteration before MMEngine's epochs end."""
    schedule = Constant(1 / 2, end=5).by_iter(epoch_length)
    change = 5 * epoch_length - 1

    expected = [0.025] * change + [0.05] * 10

    assert pytest.approx(expected, rel=1e-12) == values([schedule], BASE, len(expected), epoch_length)
