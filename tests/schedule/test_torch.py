"""Each schedule that torch has too, against `torch.optim.lr_scheduler`.

Where an index differs it is stated in the row: MMEngine's windows end one step before torch's `total_iters`,
so N iterations of torch are `end=N + 1` here.
"""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from purerun.schedule import (
    Constant,
    Cosine,
    CosineRestart,
    Cyclic,
    Exponential,
    Inverse,
    Linear,
    MultiStep,
    OneCycle,
    Plan,
    Polynomial,
    Step,
    values,
)

BASE = 0.05
STEPS = 60


def stepped(make, steps=STEPS, key="lr"):
    """Return what torch sets for each of `steps` iterations."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE, momentum=0.9)
    scheduler = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0][key])
        optimizer.step()
        scheduler.step()
    return seen


TABLE = {
    "StepLR": (lambda o: lr_scheduler.StepLR(o, 7, 0.3), [Step(7, 0.3)], STEPS),
    "MultiStepLR": (
        lambda o: lr_scheduler.MultiStepLR(o, [3, 10, 10, 40], 0.3),
        [MultiStep([3, 10, 10, 40], 0.3)],
        STEPS,
    ),
    "ExponentialLR": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), [Exponential(0.9)], STEPS),
    "ConstantLR, 9 iterations": (lambda o: lr_scheduler.ConstantLR(o, 0.25, 9), [Constant(0.25, end=10)], STEPS),
    "LinearLR, 9 iterations": (lambda o: lr_scheduler.LinearLR(o, 0.1, 0.8, 9), [Linear(0.1, 0.8, end=10)], STEPS),
    "PolynomialLR, 9 iterations": (lambda o: lr_scheduler.PolynomialLR(o, 9, 1.7), [Polynomial(1.7, end=10)], STEPS),
    "CosineAnnealingLR, up and down again": (
        lambda o: lr_scheduler.CosineAnnealingLR(o, 13, 0.004),
        [Cosine(period=13, floor=0.004)],
        STEPS,
    ),
    "CosineAnnealingWarmRestarts": (
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2, 0.004),
        [CosineRestart([5, 10, 20, 40], floor=0.004)],
        STEPS,
    ),
    "OneCycleLR": (
        lambda o: lr_scheduler.OneCycleLR(o, 0.7, STEPS, cycle_momentum=False),
        [OneCycle(0.7, end=STEPS)],
        STEPS,
    ),
    "OneCycleLR, linear": (
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.7, STEPS, pct_start=0.25, anneal_strategy="linear", cycle_momentum=False
        ),
        [OneCycle(0.7, end=STEPS, pct_start=0.25, anneal="linear")],
        STEPS,
    ),
    "OneCycleLR, three phases": (
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.7, STEPS, cycle_momentum=False, div_factor=10, final_div_factor=100, three_phase=True
        ),
        [OneCycle(0.7, end=STEPS, div_factor=10.0, final_div_factor=100.0, three_phase=True)],
        STEPS,
    ),
    "CyclicLR, triangular": (
        lambda o: lr_scheduler.CyclicLR(o, BASE, 4 * BASE, 4, 6, cycle_momentum=False),
        [Cyclic((4.0, 1.0), cycles=6, ratio_up=0.4, anneal="linear", period=60)],
        STEPS,
    ),
    "CyclicLR, triangular2": (
        lambda o: lr_scheduler.CyclicLR(o, BASE, 4 * BASE, 4, 6, mode="triangular2", cycle_momentum=False),
        [Cyclic((4.0, 1.0), cycles=6, ratio_up=0.4, anneal="linear", gamma=0.5, period=60)],
        STEPS,
    ),
    "LambdaLR, inverse": (
        lambda o: lr_scheduler.LambdaLR(o, lambda s: (1 + 0.3 * s) ** -0.75),
        [Inverse(0.3, 0.75)],
        STEPS,
    ),
    "ChainedScheduler": (
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.LinearLR(o, 0.1, total_iters=9), lr_scheduler.StepLR(o, 7, 0.3)], optimizer=o
        ),
        [Linear(0.1, end=10), Step(7, 0.3)],
        STEPS,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_same_as_torch(name):
    """A schedule gives torch's values, to rounding errors of torch's recursion."""
    make, schedules, steps = TABLE[name]

    assert pytest.approx(stepped(make, steps), rel=1e-9, abs=1e-15) == values(schedules, BASE, steps, 1)


@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_of_the_momentum(three_phase):
    """The momentum that torch cycles the other way is a second one-cycle schedule."""
    expected = stepped(
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.7, STEPS, base_momentum=0.85, max_momentum=0.95, three_phase=three_phase
        ),
        key="momentum",
    )
    schedule = OneCycle(
        0.85, end=STEPS, div_factor=0.85 / 0.95, final_div_factor=1.0, three_phase=three_phase, param="momentum"
    )

    assert pytest.approx(expected, rel=1e-12) == values([schedule], 0.9, STEPS, 1, param="momentum")


def test_hyperparameter_gradient():
    """A value is differentiable by its base, and maps a stack of bases."""
    plan = Plan([Linear(0.5, end=5), Cosine(period=10, floor=0.1)])
    base = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    scale, shift = plan(3, 0)["lr"]

    value = plan(3, 0)["lr"](base)
    (gradient,) = torch.autograd.grad(value, base)
    stacked = torch.vmap(plan(3, 0)["lr"])(torch.tensor([1.0, 2.0], dtype=torch.float64))

    assert scale == float(gradient)
    assert [scale + shift, value.detach().item()] == stacked.tolist()
