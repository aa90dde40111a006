"""Population-based training finds what is known to be best, and is a function of a key."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import purerun as pr

CURVATURE = 4.0
BEST = 1 / CURVATURE
"""One step of this size on `CURVATURE / 2 * w**2` is at the minimum; half of it halves the error, and so on."""


def valley(model, batch):
    """Compute a parabola, moved a little by each batch, so that no error stays zero."""
    return CURVATURE / 2 * (model.weight - batch).square().sum()


def population(rates):
    """Make a sweep over learning rates, and its first state."""
    torch.manual_seed(0)
    step = pr.TrainStep(nn.Linear(1, 1, bias=False), valley, pr.optim.SGD(lr=0.1), engine="func", nonfinite="allow")
    sweep = pr.wrap(step, pr.Vmap(len(rates), hyper={"lr": rates}))
    return sweep, sweep.init(0)


def evolved(rates, generations, seed=0):
    """Train, judge and select, again and again."""
    sweep, state = population(rates)
    for generation in range(generations):
        for target in (1.0, -1.0, 1.0):
            state = sweep(state, torch.tensor(target))
        error = (state["params", "weight"].flatten() - 1.0).abs()
        state = pr.evolve(state, -error, pr.Key.of(seed, "evolve", generation))
    return state


def test_it_finds_the_best_learning_rate():
    """From rates that are all much too small."""
    rates = [BEST / 40 * 1.1**place for place in range(8)]
    found = evolved(rates, generations=30)["hyper", "lr"].tolist()

    assert all(abs(math.log(rate / BEST)) > 3 for rate in rates)
    assert all(abs(math.log(rate / BEST)) < 0.5 for rate in found)


def test_it_is_a_function_of_the_key():
    """The same generations from the same key, others from another."""
    rates = [0.01, 0.02, 0.04, 0.08]
    digests = [pr.digest(evolved(rates, 4, seed)) for seed in (0, 0, 1)]

    assert digests[0] == digests[1] != digests[2]


def test_the_worst_become_the_best_and_explore():
    """A copy has everything of its model but its chance and the moved hyper-parameter; the rest stay as they were."""
    sweep, state = population([0.1, 0.2, 0.3, 0.4])
    state = sweep(state, torch.tensor(2.0))
    after = pr.evolve(state, torch.tensor([0.5, torch.nan, 0.9, 0.1]), pr.Key.of(3), share=0.5, factors=[10.0])

    model = [0, 0, 2, 2]
    assert state["params", "weight"][model].tolist() == after["params", "weight"].tolist()
    assert [0.1, 1.0, 0.3, 3.0] == after["hyper", "lr"].tolist()
    assert state["seeds"].tolist() == after["seeds"].tolist()
    for place in (0, 2):
        assert pr.digest(pr.unstack(state)[place]) == pr.digest(pr.unstack(after)[place])


def test_what_is_explored_stays_within_its_range():
    """A dropout probability is one, and any other has the range that is asked for."""
    step = pr.TrainStep(
        nn.Sequential(nn.Dropout(), nn.Linear(2, 1)), lambda m, x: m(x).mean(), pr.optim.SGD(), engine="func"
    )
    sweep = pr.wrap(step, pr.Dropout(), pr.Vmap(4, hyper={"dropout": [0.9, 0.9, 0.9, 0.9], "lr": [1.0, 1.0, 1.0, 1.0]}))
    state = pr.evolve(
        sweep.init(), torch.arange(4.0), pr.Key.of(0), hyper=["dropout", "lr"], share=0.5, factors=[4.0],
        within={"lr": (0.1, 2.0)},
    )  # fmt: skip

    assert [1.0, 1.0, 0.9, 0.9] == state["hyper", "dropout"].tolist()
    assert [2.0, 2.0, 1.0, 1.0] == state["hyper", "lr"].tolist()
    assert sweep(state, torch.ones(4, 2))["metrics", "loss"].isfinite().all()


def test_a_share_is_what_it_says():
    """Floats are a little off: 0.29 of 100 are 29."""
    _, state = population([1.0] * 100)
    after = pr.evolve(state, list(range(100)), pr.Key.of(0), share=0.29, factors=[2.0])

    assert after["hyper", "lr"].tolist() == [2.0] * 29 + [1.0] * 71


@pytest.mark.parametrize(
    ("error", "said", "change"),
    [
        (pr.StateError, "expected a population", {"state": pr.testing.counted()}),
        (ValueError, "at least one factor, and a key", {"factors": []}),
        (ValueError, "at least one factor, and a key", {"key": 0}),
        (ValueError, "that are explored, \\['lr'\\], got", {"within": {"lrr": (0.1, 2.0)}}),
        (ValueError, "that are explored, \\['lr'\\], got", {"within": {"lr": (2.0, 0.1)}}),
        (ValueError, "that are explored, \\['lr'\\], got", {"within": {"lr": 0.1}}),
    ],
    ids=["single", "factors", "key", "range of another", "range", "no range"],
)
def test_what_makes_no_sense_is_refused(error, said, change):
    """In words."""
    given = {"state": population([0.1, 0.2])[1], "scores": [0.0, 1.0], "key": pr.Key.of(0), **change}
    with pytest.raises(error, match=said):
        pr.evolve(**given)


def test_what_does_not_fit_is_refused():
    """Scores of another number, a share of more than a half, an unknown hyper-parameter, a single run."""
    sweep, state = population([0.1, 0.2])
    scores, key = torch.zeros(2), pr.Key.of(0)
    with pytest.raises(ValueError, match="expected 2 scores"):
        pr.evolve(state, torch.zeros(3), key)
    with pytest.raises(ValueError, match=r"share=0\.6"):
        pr.evolve(state, scores, key, share=0.6)
    with pytest.raises(pr.StateError, match=r"got \['rate'\]"):
        pr.evolve(state, scores, key, hyper=["rate"])
    with pytest.raises(pr.StateError, match="expected a population"):
        pr.evolve(sweep.step.init(), torch.zeros(0), key)


def test_a_momentum_is_explored_below_one():
    """There it would keep all it has, for ever."""
    step = pr.TrainStep(
        nn.Linear(2, 1), lambda m, x: m(x).mean(), pr.optim.SGD(lr=0.1, momentum=0.9), engine="func"
    )  # fmt: skip
    state = pr.wrap(step, pr.Vmap(2, hyper={"lr": [0.1, 0.2]})).init()
    after = pr.evolve(state, [1.0, 0.0], pr.Key.of(0), hyper=["momentum"], share=0.5, factors=[1.25])

    assert after["hyper", "momentum"].tolist() == [0.9, pytest.approx(1 - 1e-4)]
