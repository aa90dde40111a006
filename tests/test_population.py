"""Populations: states put together and taken apart, and what does not fit."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun.population import members

SEEDS = st.lists(st.integers(0, 2**62), min_size=1, max_size=5)


def make_step(**options):
    """Make a step with every kind of leaf: 0-d parameters, counters, buffers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.PReLU())
    return pr.TrainStep(
        net, lambda model, x: model(x).square().mean(), pr.optim.AdamW(lr=0.1), engine="func", **options
    )


def run(step, seed, iters):
    """Go on for some iterations."""
    state = step.init(seed)
    for turn in range(iters):
        state = step(state, torch.full((4, 2), float(turn)) + torch.arange(8.0).reshape(4, 2))
    return state


@given(seeds=SEEDS, iters=st.integers(0, 2))
def test_to_stack_and_unstack_changes_nothing(seeds, iters):
    """States come back bit for bit, their reports included."""
    states = [run(make_step(), seed, iters) for seed in seeds]
    population = pr.stack(states)
    back = pr.unstack(population)

    assert len(seeds) == members(population)
    assert [pr.digest(state) for state in states] == [pr.digest(state) for state in back]
    assert [sorted(state["metrics"].items()) for state in states] == [sorted(s["metrics"].items()) for s in back]
    assert pr.digest(population) == pr.digest(pr.stack(back))


@given(seeds=SEEDS, data=st.data())
def test_members_are_chosen_in_any_order(seeds, data):
    """With their chance: the seeds go along."""
    states = [run(make_step(), seed, 1) for seed in seeds]
    places = data.draw(st.lists(st.integers(0, len(seeds) - 1), min_size=1, max_size=6))
    chosen = pr.unstack(pr.choose(pr.stack(states), places))

    assert [pr.digest(states[place]) for place in places] == [pr.digest(state) for state in chosen]


def test_nothing_is_shared_with_what_it_was_made_of():
    """A write into a member's memory reaches neither the population nor another member."""
    population = pr.stack([run(make_step(), seed, 1) for seed in (1, 2)])
    before = pr.digest(population)
    first, second = pr.unstack(population)
    kept = pr.digest(second)
    for leaf in (*first["params"].values(), first["iter"], first["fingerprint"]):
        leaf.zero_()

    assert (before, kept) == (pr.digest(population), pr.digest(second))


def test_reports_of_other_names_are_left_out():
    """A fresh state has no report; one that has been on its way has."""
    step = make_step()
    state = run(step, 1, 1).replace(iter=0)

    assert () == pr.stack([step.init(0), state])["metrics"].names()


@pytest.mark.filterwarnings("ignore::purerun.wrappers.vmap.SameMembers")
def test_numbers_of_wrappers_need_a_likeness():
    """Around a sweep a window has one count for all."""
    step = make_step()
    solo, sweep = pr.wrap(step, pr.Accumulate(3)), pr.wrap(step, pr.Vmap(2), pr.Accumulate(3))
    states = [run(solo, seed, 2) for seed in (1, 2)]
    with pytest.raises(pr.StateError, match="each member's own or shared"):
        pr.stack(states)
    population = pr.stack(states, like=sweep.init(0))

    assert 2 == int(population["accumulate", "count"])
    x = torch.ones(4, 2)
    expected = [pr.digest(solo(state, x)) for state in states]
    found = pr.unstack(sweep(population, x))
    for state, digest, own in zip(found, expected, states, strict=True):
        assert digest == pr.digest(state) or pr.diff(state, solo(own, x))[0].largest < 1e-6


MISTAKES = {
    "nothing": (list, "at least one state to stack, got none"),
    "another length": (lambda: [run(make_step(), 0, 1), run(make_step(), 1, 2)], "agree in `iter`"),
    "another program": (lambda: [make_step().init(), make_step(unused="zero").init()], "agree in `fingerprint`"),
    "another entry": (
        lambda: [make_step().init(), pr.wrap(make_step(), pr.EMA(0.9)).init()],
        re.escape("['ema'] in `the state` are not in all"),
    ),
    "a population": (lambda: [pr.stack([make_step().init()])], "got a population of 1; take it apart"),
    "no state": (lambda: [{}], "states of single runs, got dict"),
}


@pytest.mark.parametrize(("states", "said"), MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_fit_is_refused(states, said):
    """One line says which entry, and what to do."""
    with pytest.raises(pr.StateError, match=said):
        pr.stack(states())


def test_what_is_no_population_is_refused():
    """One line says what came."""
    state = make_step().init()
    for function in (pr.unstack, lambda state: pr.choose(state, [0])):
        with pytest.raises(pr.StateError, match="expected a population, got the state of a single run"):
            function(state)
    with pytest.raises(pr.StateError, match="members among 0 to 0"):
        pr.choose(pr.stack([state]), [1])


def test_states_of_other_kinds_are_not_stacked():
    """Another dtype would silently win."""
    step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    one = step.init()
    for other in (one["params", "weight"].double(), torch.zeros(1, 3)):
        with pytest.raises(pr.StateError, match="expected states alike at `params/weight`"):
            pr.stack([one, one.replace(params={"weight": other})])


def test_members_are_chosen_by_whole_numbers():
    """Those of a tensor too, as ranking gives them."""
    step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    population = pr.stack([step.init(seed) for seed in range(3)])

    for places in ([2, 0], torch.tensor([2, 0]), np.array([2, 0]), list(np.array([2, 0]))):
        assert pr.choose(population, places)["seeds"].tolist() == [2, 0]
    for places in ([1.0], torch.tensor([0.5]), [3], []):
        with pytest.raises(pr.StateError, match="members among 0 to 2"):
            pr.choose(population, places)
