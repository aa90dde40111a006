"""Accumulation: a window of batches is the big batch, wherever it is cut and interrupted."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun.testing import check_resume


def squared(model, x):
    """Compute a mean over samples."""
    return model(x).square().mean()


def summed(model, x):
    """Compute a loss that says its own weight: twice the samples."""
    return pr.Loss(2 * model(x).square().sum(), weight=2 * len(x))


def make(loss=squared, **options):
    """Make a step in double precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    return pr.TrainStep(model, loss, pr.optim.SGD(lr=0.1, momentum=0.9), **options)


def close(first, second):
    """Say whether two states have the same parameters, to rounding."""
    return all(
        torch.allclose(leaf, second["params", name], rtol=1e-10, atol=1e-12) for name, leaf in first["params"].items()
    )


@pytest.mark.parametrize("loss", [squared, summed], ids=["mean", "own weight"])
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), seed=st.integers(0, 5))
def test_a_window_is_the_big_batch(loss, sizes, seed):
    """Batches of any sizes, empty ones too."""
    x = torch.randn(sum(sizes), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plain, step = make(loss), pr.wrap(make(loss), pr.Accumulate(len(sizes)))
    state = step.init()
    nothing = pr.Grads({name: torch.zeros_like(leaf) for name, leaf in state["params"].items()}, weight=0)
    for part in x.split(sizes):
        state = step(state, part) if len(part) else step.update(state, nothing)

    assert close(plain(plain.init(), x), state)
    assert 0 == int(state["accumulate", "count"])


def test_nothing_moves_before_the_window_is_full():
    """Momentum and weights wait; the counter of iterations does not."""
    step = pr.wrap(make(), pr.Accumulate(3))
    states = [step.init()]
    for _ in range(3):
        states.append(step(states[-1], torch.ones(2, 2, dtype=torch.float64)))

    assert [0, 1, 2, 0] == [int(state["accumulate", "count"]) for state in states]
    assert [0, 1, 2, 3] == [int(state["iter"]) for state in states]
    assert [True, True, False] == [
        torch.equal(a["params", "0.weight"], b["params", "0.weight"]) for a, b in pairwise(states)
    ]


def test_a_window_of_nothing_moves_nothing():
    """Only empty batches: no division by zero."""
    step = pr.wrap(make(), pr.Accumulate(2))
    state = step.init()
    empty = pr.Grads({name: torch.zeros_like(leaf) for name, leaf in state["params"].items()}, weight=0.0)
    after = step.update(step.update(state, empty), empty)

    assert close(state, after)
    assert 0 == int(after["accumulate", "count"])


def test_windows_cross_epochs():
    """Four batches an epoch, windows of three: updates after 3, 6, 8 (the end)."""
    x = torch.randn(8, 2, dtype=torch.float64)
    step = pr.wrap(make(), pr.Accumulate(3))
    loader = pr.Loader([row for row in x], batch_size=2)  # noqa: C416
    states = [step.init(), *pr.TrainLoop(step, epochs=2)(step.init(), loader)]
    moved = [
        count
        for count, (a, b) in enumerate(pairwise(states), 1)
        if not torch.equal(a["params", "0.weight"], b["params", "0.weight"])
    ]

    assert [3, 6, 8] == moved


def test_an_open_window_survives_a_checkpoint():
    """Stopped anywhere in it."""
    step = pr.wrap(make(), pr.Accumulate(4))
    loader = [torch.full((2, 2), float(i), dtype=torch.float64) for i in range(5)]

    check_resume(pr.TrainLoop(step, iters=7), step.init(), loader)


def test_the_rate_of_an_update_is_that_of_its_last_iteration():
    """Schedules count iterations, as MMEngine's do."""
    schedule = [pr.schedule.MultiStep([1, 2, 3], gamma=0.5, by="iter")]
    plain, step = make(schedule=schedule), pr.wrap(make(schedule=schedule), pr.Accumulate(3))
    x = torch.ones(2, 2, dtype=torch.float64)
    state = step.init()
    for _ in range(3):
        state = step(state, x)

    assert close(plain(plain.init().replace(iter=2), x), state)
    assert 0.1 / 4 == state["metrics", "lr"].item()


def test_a_line_search_is_refused():
    """The batches of a window are gone when it is full."""
    step = pr.TrainStep(nn.Linear(2, 1), squared, pr.optim.Torch(torch.optim.LBFGS))
    with pytest.raises(ValueError, match="searches along a line"):
        pr.wrap(step, pr.Accumulate(2))


@pytest.mark.parametrize("count", [0, -1])
def test_a_window_has_at_least_one_batch(count):
    """Others are refused when they are made."""
    with pytest.raises(ValueError, match="`count` should"):
        pr.Accumulate(count)


def test_a_window_of_one_is_no_window():
    """To rounding."""
    x = torch.ones(4, 2, dtype=torch.float64)
    plain, step = make(), pr.wrap(make(), pr.Accumulate(1))

    assert close(plain(plain(plain.init(), x), x), step(step(step.init(), x), x))
