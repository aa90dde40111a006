"""The real MMEngine, where it is installed: its schedulers, stepped, against ours asked at each counter."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it warns of at import is not ours
    pytest.importorskip("mmengine")
    from mmengine.optim import scheduler as mm

BASE = 0.05
NAMES = {
    Constant: ("Constant", {"factor": "factor"}),
    Linear: ("Linear", {"start": "start_factor", "end_factor": "end_factor"}),
    Step: ("Step", {"step_size": "step_size", "gamma": "gamma"}),
    MultiStep: ("MultiStep", {"milestones": "milestones", "gamma": "gamma"}),
    Exponential: ("Exponential", {"gamma": "gamma"}),
    Polynomial: ("Poly", {"power": "power", "floor": "eta_min"}),
    Cosine: ("CosineAnnealing", {"period": "T_max", "floor": "eta_min", "floor_ratio": "eta_min_ratio"}),
    CosineRestart: (
        "CosineRestart",
        {"periods": "periods", "weights": "restart_weights", "floor": "eta_min", "floor_ratio": "eta_min_ratio"},
    ),
    OneCycle: (
        "OneCycle",
        {
            "peak": "eta_max",
            "period": "total_steps",
            "pct_start": "pct_start",
            "anneal": "anneal_strategy",
            "div_factor": "div_factor",
            "final_div_factor": "final_div_factor",
            "three_phase": "three_phase",
        },
    ),
}


def theirs(schedule, optimizer, epoch_length=None):
    """Build MMEngine's scheduler of the same meaning."""
    name, fields = NAMES[type(schedule)]
    kind = getattr(mm, f"{name}ParamScheduler")
    given = {theirs: getattr(schedule, ours) for ours, theirs in fields.items()}
    if given.get("eta_min_ratio") is not None:
        given["eta_min"] = None
    if given.get("restart_weights") == ():
        given["restart_weights"] = (1,) * len(schedule.periods)
    window = {"begin": schedule.begin} | ({} if schedule.end is None else {"end": schedule.end})
    if epoch_length:
        return kind.build_iter_from_epoch(
            optimizer, param_name=schedule.param, epoch_length=epoch_length, **window, **given
        )
    return kind(optimizer, schedule.param, by_epoch=schedule.by == "epoch", **window, **given)


def stepped(schedules, iters, epoch_length, *, convert=False, base=BASE):
    """Return the values that MMEngine's hook order gives: after an iteration those by iter, then by epoch."""
    param = schedules[0].param
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], **{"lr": 1.0, param: base})
    schedulers = [theirs(s, optimizer, epoch_length if convert and s.by == "epoch" else None) for s in schedules]
    seen = []
    for iteration in range(1, iters + 1):
        seen.append(optimizer.param_groups[0][param])
        optimizer.step()
        due = [s for s in schedulers if not s.by_epoch]
        due += [s for s in schedulers if s.by_epoch and iteration % epoch_length == 0]
        for scheduler in due:
            scheduler.step()
    return seen


ALONE = [
    Constant(0.3, end=9),
    Constant(0.3, begin=3, end=9),
    Linear(0.1, 0.7, end=9),
    Step(3, 0.3),
    MultiStep([2, 5, 5, 9], 0.3, begin=2),
    Exponential(0.8, begin=2, end=9),
    Polynomial(0.9, floor=0.001, end=9),
    Cosine(period=4, floor=0.002),
    Cosine(end=11, floor_ratio=0.1),
    CosineRestart([4, 5], [1, 0.5]),
    CosineRestart([4, 5, 3], floor_ratio=0.1, begin=2),
    OneCycle(0.3, end=20),
    OneCycle(0.3, period=20, pct_start=0.4, anneal="linear", final_div_factor=3.0, three_phase=True),
]


@pytest.mark.parametrize("schedule", ALONE, ids=repr)
def test_alone(schedule):
    """Each schedule gives MMEngine's values."""
    expected = stepped([schedule], 20, 1)

    assert pytest.approx(expected, rel=1e-12, abs=1e-15) == values([schedule], BASE, 20, 1)


@pytest.mark.parametrize("schedule", ALONE[:-2], ids=repr)
@pytest.mark.parametrize("epoch_length", [7, 11])
def test_converted(schedule, epoch_length):
    """`by_iter` is `convert_to_iter_based`."""
    expected = stepped([schedule], 12 * epoch_length, epoch_length, convert=True)
    converted = schedule.by_iter(epoch_length)

    assert pytest.approx(expected, rel=1e-9, abs=1e-15) == values([converted], BASE, len(expected), epoch_length)


def test_momentum():
    """Other hyper-parameters than the learning rate are scheduled in the same way."""
    schedules = [Linear(0.5, end=5, param="momentum"), Cosine(period=9, floor=0.3, begin=5, param="momentum")]

    expected = stepped(schedules, 20, 1)

    assert pytest.approx(expected, rel=1e-12) == values(schedules, BASE, 20, 1, param="momentum")


@pytest.mark.parametrize("epoch_length", [7, 11])
def test_warmup_and_milestones(epoch_length):
    """MMDetection's usual schedule, a warm-up by iteration and milestones by epoch, is exact."""
    schedules = [Linear(0.001, end=20, by="iter"), MultiStep([1, 4, 5], end=6)]

    expected = stepped(schedules, 6 * epoch_length, epoch_length)

    assert pytest.approx(expected, rel=1e-12) == values(schedules, BASE, 6 * epoch_length, epoch_length)


@pytest.mark.parametrize("epoch_length", [7, 11])
def test_warmup_and_cosine_converted(epoch_length):
    """A warm-up that overlaps a cosine with a floor, all by iteration, is exact."""
    schedules = [Linear(0.1, end=20, by="iter"), Cosine(floor=0.01, end=6)]

    expected = stepped(schedules, 6 * epoch_length, epoch_length, convert=True)
    converted = [schedule.by_iter(epoch_length) for schedule in schedules]

    assert pytest.approx(expected, rel=1e-9) == values(converted, BASE, 6 * epoch_length, epoch_length)


def fraction(low=0.05, high=1.0):
    return st.floats(low, high)


@st.composite
def anywhere(draw):
    begin = draw(st.integers(0, 10))
    window = {"begin": begin, "end": begin + draw(st.integers(1, 15))}
    gamma, steps, floor = draw(fraction()), draw(st.integers(1, 12)), draw(st.floats(0, 0.1))
    return draw(
        st.sampled_from(
            [
                Constant(gamma, **window),
                Linear(gamma, draw(fraction()), **window),
                Step(steps, gamma, begin=begin),
                MultiStep([steps, steps + 2], gamma, **window),
                Exponential(gamma, **window),
                Polynomial(2 * gamma, floor=floor, **window),
                Cosine(period=steps, floor=floor, begin=begin),
                Cosine(floor_ratio=floor, **window),
                CosineRestart([steps, 3], [gamma, 1], floor=floor, **window),
            ]
        )
    )


@settings(deadline=None)
@given(st.lists(anywhere(), min_size=2, max_size=4))
def test_composed(schedules):
    """Whatever overlaps: several schedules give the values of several schedulers of MMEngine."""
    expected = stepped(schedules, 30, 1)

    # MMEngine's recursion loses digits where it divides by nearly nothing: relative to the largest value.
    tolerance = 1e-9 * max(map(abs, expected))
    assert pytest.approx(expected, rel=1e-9, abs=tolerance) == values(schedules, BASE, 30, 1)
