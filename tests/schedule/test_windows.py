"""Windows, the two counters, and what a composition of both means."""

from __future__ import annotations

import copy

import attrs
import pytest

from purerun.schedule import (
    IDENTITY,
    Affine,
    Constant,
    Cosine,
    CosineRestart,
    Cyclic,
    Exponential,
    FlatCosine,
    Geometric,
    Inverse,
    Linear,
    LinearAnnealing,
    MultiStep,
    OneCycle,
    Plan,
    Polynomial,
    Step,
    compose,
    values,
)

KINDS = [
    Constant(0.25, begin=2, end=9),
    Linear(0.1, begin=2, end=9),
    Geometric(0.1, begin=2, end=9),
    Step(2, begin=2, end=9),
    MultiStep([2, 4], begin=2, end=9),
    Exponential(0.9, begin=2, end=9),
    Inverse(0.5, begin=2, end=9),
    Cyclic((3.0, 0.5), cycles=2, begin=2, end=9),
    Polynomial(2.0, floor=0.01, begin=2, end=9),
    LinearAnnealing(floor_ratio=0.01, begin=2, end=9),
    FlatCosine(0.5, floor=0.01, begin=2, end=9),
    Cosine(period=4, floor=0.01, begin=2, end=9),
    CosineRestart([3, 2], weights=[1, 0.5], begin=2, end=9),
    OneCycle(2.0, begin=2, end=9),
]
BY_NAME = {type(schedule).__name__: schedule for schedule in KINDS}


def run(schedules, base, epochs, epoch_length):
    """MMEngine's order of events: every schedule at the start; then after an iteration those by iter, then by epoch.

    The single moves are the schedules' own; that they are MMEngine's is shown in test_recursion.py.
    """
    value, seen = base, []

    def apply(by, count):
        nonlocal value
        for x in schedules:
            if x.by in by and x.begin <= count < x.stop:
                keep, gain, add = x.move(count - x.begin - 1, count - x.begin)
                value = keep * value + gain * base + add

    apply(("iter", "epoch"), 0)
    for iteration in range(1, epochs * epoch_length + 1):
        seen.append(value)
        apply(("iter",), iteration)
        if iteration % epoch_length == 0:
            apply(("epoch",), iteration // epoch_length)
    return seen


@pytest.mark.parametrize("name", BY_NAME)
def test_window(name):
    """Nothing happens before the window, and its last value holds after it."""
    schedule = BY_NAME[name]

    assert [IDENTITY, IDENTITY] == [schedule.at(0), schedule.at(1)]
    assert [schedule.at(8)] * 3 == [schedule.at(9), schedule.at(10), schedule.at(10**6)]
    assert schedule.at(4) == attrs.evolve(schedule, begin=12, end=19).at(14)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("epoch_length", [7, 11])
def test_counters(name, epoch_length):
    """By epoch a value lasts for an epoch; by iteration the epoch's length does not matter."""
    by_epoch, by_iter = BY_NAME[name], attrs.evolve(BY_NAME[name], by="iter")

    expected = [by_epoch.at(epoch)(0.05) for epoch in range(12) for _ in range(epoch_length)]

    assert expected == values([by_epoch], 0.05, len(expected), epoch_length)
    assert [by_iter.at(t)(0.05) for t in range(30)] == values([by_iter], 0.05, 30, epoch_length)


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("epoch_length", [7, 11])
def test_by_iter_counts_in_iterations(name, epoch_length):
    """Turning epochs into iterations multiplies every number of steps, and nothing else."""
    before = BY_NAME[name]
    after = before.by_iter(epoch_length)
    counts = {"begin", "end", "milestones", "step_size", "period", "periods"}

    for field in attrs.fields(type(before)):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.name == "by":
            assert ("epoch", "iter") == (old, new)
        elif field.name in counts and old is not None:
            assert (
                (new == tuple(epoch_length * x for x in old)) if isinstance(old, tuple) else new == epoch_length * old
            )
        else:
            assert old == new
    assert after == after.by_iter(3)


def test_by_iter_keeps_what_is_not_given():
    """A window without an end and a period by default stay so."""
    assert Exponential(0.9, by="iter") == Exponential(0.9).by_iter(7)
    assert Cosine(end=70, by="iter") == Cosine(end=10).by_iter(7)


@pytest.mark.parametrize("epoch_length", [7, 11])
def test_scales_of_both_counters_multiply(epoch_length):
    """A warm-up by iteration and milestones by epoch are exact whatever the epoch's length: both only scale."""
    schedules = [Linear(0.001, end=20, by="iter"), MultiStep([1, 2, 4])]

    expected = run(schedules, 0.05, 6, epoch_length)

    assert pytest.approx(expected, rel=1e-12) == values(schedules, 0.05, 6 * epoch_length, epoch_length)


@pytest.mark.parametrize("epoch_length", [7, 11])
def test_warmup_within_the_first_epoch_is_exact(epoch_length):
    """A warm-up that ends before the schedule with a floor first moves gives MMEngine's values."""
    schedules = [Linear(0.001, end=7, by="iter"), Cosine(floor=0.01, end=6)]

    expected = run(schedules, 0.05, 6, epoch_length)

    assert pytest.approx(expected, rel=1e-12) == values(schedules, 0.05, 6 * epoch_length, epoch_length)


def test_one_after_another_over_both_counters_is_exact():
    """Schedules that follow each other in the list and in time are exact, floors and restarts included."""
    schedules = [
        Linear(0.1, end=7, by="iter"),
        Cosine(floor=0.01, begin=1, end=3),
        Constant(0.5, begin=21, end=30, by="iter"),
        CosineRestart([1, 1], [0.5, 0.25], begin=5, end=7),
        Exponential(0.9, begin=49, by="iter"),
    ]

    expected = run(schedules, 0.05, 9, 7)

    assert pytest.approx(expected, rel=1e-12) == values(schedules, 0.05, 63, 7)


@pytest.mark.parametrize("epoch_length", [7, 11])
def test_by_iter_makes_an_overlap_exact(epoch_length):
    """Overlapping schedules of both counters, all turned into iterations, follow the recursion."""
    schedules = [x.by_iter(epoch_length) for x in (Linear(0.1, end=20, by="iter"), Cosine(floor=0.01, end=6))]

    expected = run(schedules, 0.05, 6, epoch_length)

    assert pytest.approx(expected, rel=1e-12) == values(schedules, 0.05, 6 * epoch_length, epoch_length)


def test_list_order_says_what_a_warmup_warms():
    """Over both counters a warm-up before a floor scales the base, after it the value with its floor."""
    warmup, cosine = Linear(0.5, end=100, by="iter"), Cosine(floor=0.01, end=6)
    half, way = warmup.at(30), cosine.at(2)

    assert {"lr": half.then(way)} == compose([warmup, cosine], epoch=2, iter=30)
    assert {"lr": way.then(half)} == compose([cosine, warmup], epoch=2, iter=30)


def test_time_goes_before_list_order_within_a_counter():
    """Of two schedules of one counter the earlier is applied first, wherever it stands in the list."""
    early, late = Cosine(floor=0.01, end=3), Constant(0.5, begin=5)

    assert compose([early, late], epoch=9, iter=0) == compose([late, early], epoch=9, iter=0)


def test_each_hyper_parameter_has_its_own():
    """Schedules of different hyper-parameters do not meet."""
    schedules = [
        OneCycle(1.0, end=9),
        Exponential(0.5, param="momentum"),
        Linear(0.0, end=5, param="weight_decay", by="iter"),
    ]

    assert ("lr", "momentum", "weight_decay") == Plan(schedules).params
    assert {
        "lr": schedules[0].at(3),
        "momentum": Affine(0.125, 0.0),
        "weight_decay": Affine(0.5, 0.0),
    } == compose(schedules, epoch=3, iter=2)


def test_nothing_scheduled():
    """No schedules, no maps; a hyper-parameter that is not scheduled keeps its base value."""
    assert {} == compose([], epoch=3, iter=4)
    assert [0.1] * 4 == values([Linear(0.1, end=5, param="momentum")], 0.1, 4, 2)


@pytest.mark.parametrize("name", BY_NAME)
def test_seeking(name):
    """A million steps ahead the value is that of the period's end, an endless one's its formula, at once."""
    schedule = attrs.evolve(BY_NAME[name], end=2_000_002, by="iter", begin=2)
    backwards = [schedule.at(step) for step in (10**6, 10, 3)]

    assert [schedule.at(step) for step in (3, 10, 10**6)] == backwards[::-1]
    assert {"lr": schedule.at(10**6)} == compose([schedule], epoch=0, iter=10**6)


def test_far_cosine_keeps_its_phase():
    """After a million steps a cosine is where its period says, to the last digit."""
    assert Cosine(period=1000).at(300) == Cosine(period=1000).at(10**6 + 300)


def test_a_plan_is_a_value():
    """Plans of equal schedules are equal, and a copy answers the same."""
    schedules = [Linear(0.1, end=5), Cosine(floor=0.01, end=9)]

    assert Plan(schedules) == Plan(tuple(schedules))
    assert hash(Plan(schedules)) == hash(Plan(tuple(schedules)))
    assert Plan(schedules)(3, 0) == copy.deepcopy(Plan(schedules))(3, 0)
