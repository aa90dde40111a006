"""Composition against MMEngine's recursion, written down here once more: one move of each open schedule a step."""

from __future__ import annotations

import math
from itertools import accumulate

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purerun.schedule import (
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
)

COUNTERS = 45


def floor_of(schedule, base):
    return schedule.floor if schedule.floor_ratio is None else schedule.floor_ratio * base


def length(schedule):
    return schedule.period or schedule.end - schedule.begin


def cosine(value, m, s, steps):
    """One step of the cosine recursion, `s >= 1`."""
    return (1 + math.cos(math.pi * s / steps)) / (1 + math.cos(math.pi * (s - 1) / steps)) * (value - m) + m


def move_constant(x, s, value, base):
    if s == 0:
        return value * x.factor
    return value / x.factor if x.end and s == x.end - x.begin - 1 else value


def move_linear(x, s, value, base):
    if s == 0:
        return value * x.start
    steps, rise = x.end - x.begin - 1, x.end_factor - x.start
    return value * (1 + rise / (steps * x.start + (s - 1) * rise))


def move_geometric(x, s, value, base):
    return value * x.start if s == 0 else value * (x.end_factor / x.start) ** (1 / (x.end - x.begin - 1))


def move_step(x, s, value, base):
    return value * x.gamma if s and s % x.step_size == 0 else value


def move_multi_step(x, s, value, base):
    return value * x.gamma ** x.milestones.count(s)


def move_exponential(x, s, value, base):
    return value * x.gamma if s else value


def move_inverse(x, s, value, base):
    return value * ((1 + x.gamma * (s - 1)) / (1 + x.gamma * s)) ** x.power if s else value


def cyclic_ratio(x, s):
    """MMCV 1.x's phases."""
    steps = length(x) // x.cycles
    up = int(x.ratio_up * steps)
    shrunk = x.gamma ** (s // steps)
    peak = 1 - shrunk + x.target[0] * shrunk
    k = s % steps
    start, stop, done = (1, peak, k / up) if k < up else (peak, x.target[1], (k - up) / (steps - up))
    if x.anneal == "linear":
        return start + (stop - start) * done
    return stop + 0.5 * (start - stop) * (math.cos(math.pi * done) + 1)


def move_cyclic(x, s, value, base):
    return value * cyclic_ratio(x, s) / (cyclic_ratio(x, s - 1) if s else 1)


def move_polynomial(x, s, value, base):
    m, steps = floor_of(x, base), x.end - x.begin - 1
    return (value - m) * (1 - 1 / (steps - s + 1)) ** x.power + m if s else value


def move_linear_annealing(x, s, value, base):
    m = floor_of(x, base)
    return (value - m) * (1 - 1 / (length(x) - s + 1)) + m if 0 < s <= length(x) else value


def move_flat_cosine(x, s, value, base):
    m, steps = floor_of(x, base), length(x)
    flat = round(steps * x.start)
    if s > steps or s < flat or (s == flat and flat < steps):
        return value
    return m if flat == steps else cosine(value, m, s - flat, steps - flat)


def move_cosine(x, s, value, base):
    m, steps = floor_of(x, base), length(x)
    if s == 0:
        return value
    if (s - 1 - steps) % (2 * steps) == 0:
        return value + (base - m) * (1 - math.cos(math.pi / steps)) / 2
    return cosine(value, m, s, steps)


def move_cosine_restart(x, s, value, base):
    ends = list(accumulate(x.periods))
    if s >= ends[-1]:
        return value
    index = next(i for i, stop in enumerate(ends) if s < stop)
    k = s - (ends[index] - x.periods[index])
    if k == 0:
        return base * (x.weights[index] if x.weights else 1)
    return cosine(value, floor_of(x, base), k, x.periods[index])


def move_one_cycle(x, s, value, base):
    steps = length(x)
    s = min(s, steps - 1)
    first = x.peak / x.div_factor
    phases = [(x.pct_start * steps - 1, first, x.peak), (steps - 1, x.peak, first / x.final_div_factor)]
    if x.three_phase:
        phases[1:] = [
            (2 * x.pct_start * steps - 2, x.peak, first),
            (steps - 1, first, first / x.final_div_factor),
        ]
    index = next(i for i, (end, _, _) in enumerate(phases) if s <= end)
    begin = phases[index - 1][0] if index else 0.0
    end, start, stop = phases[index]
    done = (s - begin) / (end - begin) if end != begin else 1.0
    if x.anneal == "linear":
        return (stop - start) * done + start
    return stop + (start - stop) / 2 * (math.cos(math.pi * done) + 1)


def some(low, high):
    return st.floats(low, high, allow_subnormal=False)


GAMMA = some(0.1, 1.2)
STEPS = st.integers(1, 20)
ANNEAL = st.sampled_from(["cos", "linear"])
FLOOR = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"floor": some(0, 1)}),
    st.fixed_dictionaries({"floor_ratio": some(0, 1)}),
)


def with_floor(kind, **fields):
    return st.builds(lambda floor, window, **rest: kind(**rest, **floor, **window), FLOOR, WINDOW, **fields)


def windowed(kind, **fields):
    return st.builds(lambda window, **rest: kind(**rest, **window), WINDOW, **fields)


@st.composite
def windows(draw):
    begin = draw(st.integers(0, 15))
    return {"begin": begin, "end": begin + draw(st.integers(1, 25))}


WINDOW = windows()

# A new schedule is a new row: how one is drawn, and one step of its recursion.
FAMILY = {
    Constant: (windowed(Constant, factor=some(0.05, 1)), move_constant),
    Linear: (windowed(Linear, start=some(0.05, 1), end_factor=some(0, 1)), move_linear),
    Geometric: (windowed(Geometric, start=some(0.05, 2), end_factor=some(0.05, 2)), move_geometric),
    Step: (windowed(Step, step_size=STEPS, gamma=GAMMA), move_step),
    MultiStep: (
        windowed(MultiStep, milestones=st.lists(STEPS | st.just(0), min_size=1).map(sorted), gamma=GAMMA),
        move_multi_step,
    ),
    Exponential: (windowed(Exponential, gamma=GAMMA), move_exponential),
    Inverse: (windowed(Inverse, gamma=some(0, 2), power=some(0, 2)), move_inverse),
    Cyclic: (
        windowed(
            Cyclic,
            target=st.tuples(some(0.1, 10), some(0.1, 10)),
            cycles=st.integers(1, 3),
            ratio_up=some(0, 1),
            anneal=ANNEAL,
            gamma=some(0.1, 1),
            period=st.integers(3, 20),
        ),
        move_cyclic,
    ),
    Polynomial: (with_floor(Polynomial, power=some(0.5, 3)), move_polynomial),
    LinearAnnealing: (with_floor(LinearAnnealing, period=STEPS | st.none()), move_linear_annealing),
    FlatCosine: (with_floor(FlatCosine, start=some(0, 1), period=STEPS | st.none()), move_flat_cosine),
    Cosine: (with_floor(Cosine, period=STEPS | st.none()), move_cosine),
    CosineRestart: (
        with_floor(CosineRestart, periods=st.lists(STEPS, min_size=3, max_size=3))
        | with_floor(CosineRestart, periods=st.tuples(STEPS, STEPS), weights=st.tuples(some(0, 2), some(0, 2))),
        move_cosine_restart,
    ),
    OneCycle: (
        windowed(
            OneCycle,
            peak=some(0, 5),
            period=st.integers(1, 20) | st.none(),
            pct_start=some(0.01, 0.99),
            anneal=ANNEAL,
            final_div_factor=some(1, 100),
            three_phase=st.booleans(),
        ),
        move_one_cycle,
    ),
}

ANY = st.one_of([draw for draw, _ in FAMILY.values()])


def endless(schedule):
    """The same without an end, if its shape allows it."""
    try:
        return attrs.evolve(schedule, end=None)
    except ValueError:
        return schedule


def recursion(schedules, base, counters=COUNTERS):
    """Yield the value at each counter value, and the largest one so far."""
    value = largest = base
    for count in range(counters):
        for schedule in schedules:
            if schedule.begin <= count and (schedule.end is None or count < schedule.end):
                value = FAMILY[type(schedule)][1](schedule, count - schedule.begin, value, base)
                largest = max(largest, abs(value))
        yield value, largest


def holds(schedules, base, counters=COUNTERS):
    """Assert that the composed maps give the recursion's values, to rounding errors of what it went through."""
    plan = Plan(schedules)
    for count, (expected, largest) in enumerate(recursion(schedules, base, counters)):
        actual = plan(count, count)["lr"](base)

        assert pytest.approx(expected, abs=1e-9 * largest, rel=0) == actual, count


@pytest.mark.parametrize("kind", FAMILY)
def test_alone(kind):
    """Each schedule alone gives the values of its recursion, in closed form."""

    @given(FAMILY[kind][0], some(1e-2, 10), st.booleans())
    def check(schedule, base, open_ended):
        schedule = endless(schedule) if open_ended else schedule
        for count, (expected, largest) in enumerate(recursion([schedule], base)):
            assert pytest.approx(expected, abs=1e-11 * largest, rel=0) == schedule.at(count)(base)

    check()


@pytest.mark.parametrize("kind", FAMILY)
def test_alone_is_the_composition_of_one(kind):
    """A composition of one schedule is, bit for bit, that schedule."""

    @given(FAMILY[kind][0], st.integers(0, 2000), st.booleans())
    def check(schedule, count, open_ended):
        schedule = endless(schedule) if open_ended else schedule

        assert {"lr": schedule.at(count)} == Plan([schedule])(count, 0)

    check()


@given(st.lists(ANY, min_size=2, max_size=4), some(1e-2, 10), st.lists(st.booleans(), min_size=4, max_size=4))
def test_composition(schedules, base, open_ended):
    """Whatever overlaps, gaps and kinds: the composition is the recursion."""
    schedules = [endless(s) if is_open else s for s, is_open in zip(schedules, open_ended, strict=False)]
    holds(schedules, base)


@given(st.lists(ANY, min_size=2, max_size=3), st.permutations(range(COUNTERS)))
def test_any_order_of_asking(schedules, order):
    """A plan gives the same bits in whatever order it is asked: it remembers nothing that matters."""
    in_turn = Plan(schedules)
    expected = [in_turn(count, count) for count in range(COUNTERS)]
    jumping = Plan(schedules)

    actual = {count: jumping(count, count) for count in order}

    assert expected == [actual[count] for count in range(COUNTERS)]


def test_long_overlap():
    """An overlap of thousands of steps that do not commute is followed exactly, across its chunks of rows."""
    schedules = [
        Linear(0.001, end=3000),
        Cosine(floor=0.01, end=4000),
        MultiStep([1023, 1024, 2048, 2500], 0.5, begin=100),
    ]

    holds(schedules, 0.1, counters=5000)


def test_far_ahead():
    """An overlap without an end is right and the same at iteration 100,000 if that is the first that is asked for."""
    schedules = [Exponential(0.9999, by="iter"), Cosine(period=1000, floor=0.01, by="iter")]
    base = 0.1
    *_, (expected, _) = recursion(schedules, base, 100_001)

    first_asked = Plan(schedules)(0, 100_000)
    plan = Plan(schedules)
    for count in range(0, 100_001, 100):
        last_asked = plan(0, count)

    assert first_asked == last_asked
    assert pytest.approx(expected, rel=1e-9) == first_asked["lr"](base)
