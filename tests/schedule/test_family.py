"""Schedules as values: what they refuse, and how they are compared and changed."""

from __future__ import annotations

import attrs
import pytest

from purerun.schedule import (
    Constant,
    Cosine,
    CosineRestart,
    Cyclic,
    Exponential,
    FlatCosine,
    Geometric,
    Linear,
    LinearAnnealing,
    MultiStep,
    OneCycle,
    Plan,
    Polynomial,
    Schedule,
    Step,
    compose,
    values,
)

REFUSED = {
    "end not after begin": (lambda: Step(3, begin=5, end=5), "Step: `end` .* greater than begin=5, but it is 5"),
    "end before begin": (lambda: Linear(begin=5, end=4), "Linear: `end`"),
    "end not whole": (lambda: Linear(end=4.5), "Linear: `end`"),
    "begin below 0": (lambda: Exponential(0.9, begin=-1), "Exponential: `begin` .* at least 0, but it is -1"),
    "begin a bool": (lambda: Exponential(0.9, begin=True), "Exponential: `begin`"),
    "unknown unit": (lambda: Exponential(0.9, by="batch"), "Exponential: `by` should be 'epoch' or 'iter'"),
    "no name": (lambda: Exponential(0.9, param=""), "Exponential: `param` should be the name"),
    "constant above 1": (lambda: Constant(1.5), "Constant: `factor` should be a number from 0 to 1, but it is 1.5"),
    "constant below 0": (lambda: Constant(-0.5), "Constant: `factor`"),
    "linear start above 1": (lambda: Linear(1.5, end=5), "Linear: `start`"),
    "linear end below 0": (lambda: Linear(0.5, -0.5, end=5), "Linear: `end_factor`"),
    "not a number": (lambda: Linear(float("nan"), end=5), "Linear: `start`"),
    "linear without end": (lambda: Linear(0.1), "Linear: `end` should be given"),
    "polynomial without end": (Polynomial, "Polynomial: `end` should be given"),
    "geometric from 0": (lambda: Geometric(0.0, end=5), "Geometric: `start` should be a number greater than 0"),
    "geometric without end": (lambda: Geometric(0.1), "Geometric: `end` should be given"),
    "cosine without length": (Cosine, "Cosine: `period` should be given where there is no `end`"),
    "cosine period 0": (lambda: Cosine(period=0), "Cosine: `period` should be a whole number of at least 1"),
    "two floors": (lambda: Cosine(end=9, floor=0.1, floor_ratio=0.1), "Cosine: `floor_ratio` .* None beside floor=0.1"),
    "flat cosine start": (lambda: FlatCosine(1.5, end=9), "FlatCosine: `start`"),
    "annealing without length": (LinearAnnealing, "LinearAnnealing: `period`"),
    "step size 0": (lambda: Step(0), "Step: `step_size` should be a whole number of at least 1"),
    "negative gamma": (lambda: Step(3, -0.1), "Step: `gamma`"),
    "milestones not rising": (lambda: MultiStep([11, 8]), r"MultiStep: `milestones` should be in rising order"),
    "milestone not whole": (lambda: MultiStep([8.5]), "MultiStep: `milestones`"),
    "no milestones": (lambda: MultiStep([]), "MultiStep: `milestones` should be a sequence with at least one"),
    "milestones a number": (lambda: MultiStep(8), "MultiStep: `milestones`"),
    "no periods": (lambda: CosineRestart([]), "CosineRestart: `periods`"),
    "weights do not fit": (lambda: CosineRestart([4, 5], [1]), r"CosineRestart: `weights` should be a sequence of 2"),
    "unknown anneal": (lambda: OneCycle(1.0, end=9, anneal="exp"), "OneCycle: `anneal` should be 'cos' or 'linear'"),
    "pct_start above 1": (lambda: OneCycle(1.0, end=9, pct_start=1.5), "OneCycle: `pct_start`"),
    "one-cycle without length": (lambda: OneCycle(1.0), "OneCycle: `period`"),
    "one-cycle factor 0": (lambda: OneCycle(1.0, end=9, div_factor=0), "OneCycle: `div_factor`"),
    "one target": (lambda: Cyclic((10.0,), end=9), "Cyclic: `target` should be a sequence of 2"),
    "too many cycles": (lambda: Cyclic(cycles=10, end=9), "Cyclic: `cycles` should be at most .* 9"),
    "not a schedule": (lambda: Plan(["linear"]), "expected schedules of `purerun.schedule`, got 'linear'"),
    "epoch of no length": (lambda: values([], 0.1, 5, 0), "`epoch_length` should be a whole number"),
    "by_iter of no length": (lambda: Step(3).by_iter(0), "Step: `epoch_length` should be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """What cannot be meant is refused when it is made, with the field, what it should be and what it is."""
    make, message = REFUSED[name]

    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_values_are_values():
    """Schedules are compared, hashed, printed and changed as values; lists become tuples."""
    schedule = MultiStep([8, 11], by="epoch")

    assert (8, 11) == schedule.milestones
    assert MultiStep((8, 11)) == schedule
    assert hash(MultiStep((8, 11))) == hash(schedule)
    assert schedule == attrs.evolve(attrs.evolve(schedule, gamma=0.5), gamma=0.1)
    assert schedule != Step(8)
    assert "MultiStep(begin=0, end=None, by='epoch', param='lr', milestones=(8, 11), gamma=0.1)" == repr(schedule)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        schedule.gamma = 0.5


def test_a_schedule_is_abstract():
    """The family's common part cannot be made alone."""
    with pytest.raises(TypeError, match="abstract"):
        Schedule()


def test_linear_from_zero():
    """A warm-up may start at zero, where MMEngine divides by it."""
    assert [0.0, 0.25, 0.5, 0.75, 1.0, 1.0] == values([Linear(0.0, end=5)], 1.0, 6, 1)


@pytest.mark.parametrize("kind", [Linear, Constant])
def test_from_zero_beside_a_floor(kind):
    """A warm-up from zero that comes first in the list is, beside a floor, the limit of ever smaller starts."""
    cosine = Cosine(floor=0.1, end=10)
    end = 5 if kind is Linear else 2

    expected = values([kind(1e-13, end=end), cosine], 1.0, 10, 1)

    assert pytest.approx(expected, abs=1e-9) == values([kind(0.0, end=end), cosine], 1.0, 10, 1)


def test_from_zero_that_something_was_added_to():
    """Where the floor was added to a value that then has to leave zero by a factor, there is no finite result."""
    with pytest.raises(ValueError, match=r"schedules of `lr` \(Cosine, Linear\): at epoch 1 a factor leaves zero"):
        compose([Cosine(floor=0.1, end=10), Linear(0.0, end=5)], epoch=0, iter=0)


def test_an_absolute_move_forgets_a_leap():
    """What a one-cycle schedule overwrites at each step does not matter to it."""
    cycle = OneCycle(1.0, end=10)

    assert values([cycle], 0.1, 12, 1) == values([Linear(0.0, end=5), cycle], 0.1, 12, 1)
