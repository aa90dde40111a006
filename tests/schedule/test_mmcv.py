"""The policies and warm-ups of MMCV 1.x, from their closed forms (value at progress p of P)."""

from __future__ import annotations

import math

import pytest

from purerun.schedule import (
    Constant,
    Cosine,
    Cyclic,
    FlatCosine,
    Geometric,
    Inverse,
    Linear,
    LinearAnnealing,
    Polynomial,
    values,
)

BASE = 0.05
LOW = 0.004
P = 40


def annealed(start, stop, done):
    return stop + 0.5 * (start - stop) * (math.cos(math.pi * done) + 1)


def cyclic(p, steps, up, peak, low, gamma):
    cycle, k = divmod(p, steps)
    peak = 1 - gamma**cycle + peak * gamma**cycle
    return BASE * (annealed(1, peak, k / up) if k < up else annealed(peak, low, (k - up) / (steps - up)))


POLICIES = {
    "inv": ([Inverse(0.2, 0.75)], lambda p: BASE * (1 + 0.2 * p) ** -0.75),
    "poly": ([Polynomial(0.9, floor=LOW, end=P + 1)], lambda p: (BASE - LOW) * (1 - p / P) ** 0.9 + LOW),
    "cosine": ([Cosine(floor=LOW, end=P)], lambda p: annealed(BASE, LOW, p / P)),
    "cosine, ratio": ([Cosine(floor_ratio=0.1, end=P)], lambda p: annealed(BASE, BASE * 0.1, p / P)),
    "flat cosine": (
        [FlatCosine(0.7, floor=LOW, end=P)],
        lambda p: BASE if p < 28 else annealed(BASE, LOW, (p - 28) / 12),
    ),
    "flat cosine, ratio": (
        [FlatCosine(floor_ratio=0.1, end=P)],
        lambda p: BASE if p < 30 else annealed(BASE, BASE * 0.1, (p - 30) / 10),
    ),
    "linear annealing": ([LinearAnnealing(floor=LOW, end=P)], lambda p: BASE + (LOW - BASE) * p / P),
    "cyclic": ([Cyclic(end=P)], lambda p: cyclic(p, 40, 16, 10, 1e-4, 1)),
    "cyclic, three cycles": (
        [Cyclic((8, 0.01), cycles=3, ratio_up=0.3, gamma=0.6, end=P)],
        lambda p: cyclic(p, 13, 3, 8, 0.01, 0.6),
    ),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_policy(policy):
    """A policy of MMCV has an exact counterpart."""
    schedules, formula = POLICIES[policy]

    assert pytest.approx([formula(p) for p in range(P)], rel=1e-12) == values(schedules, BASE, P, 1)


W, R = 12, 0.1
WARMUPS = {
    "constant": (Constant(R, end=W + 1, by="iter"), lambda k: R),
    "linear": (Linear(R, end=W + 1, by="iter"), lambda k: 1 - (1 - k / W) * (1 - R)),
    "exp": (Geometric(R, end=W + 1, by="iter"), lambda k: R ** (1 - k / W)),
}


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("epoch_length", [3, 7, 11])
def test_warmup(warmup, epoch_length):
    """A warm-up that stands last multiplies the regular value, whatever the floor and the epoch's length."""
    schedule, factor = WARMUPS[warmup]
    regular = Cosine(floor=LOW, end=10)
    expected = [
        annealed(BASE, LOW, k // epoch_length / 10) * (factor(k) if k < W else 1) for k in range(10 * epoch_length)
    ]

    assert pytest.approx(expected, rel=1e-12) == values([regular, schedule], BASE, 10 * epoch_length, epoch_length)
