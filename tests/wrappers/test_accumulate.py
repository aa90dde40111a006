"""Accumulation: a window of batches is the big batch, wherever it is cut and interrupted."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

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


@pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
def test_windows_may_end_with_epochs(lease):
    """Five batches an epoch, the last one smaller, windows of three: updates after 3, 5, 8, 10, as by hand."""
    x = torch.randn(9, 2, dtype=torch.float64)
    step, plain = pr.wrap(make(), pr.Accumulate(3, window="epoch")), make()
    loader = pr.Loader([row for row in x], batch_size=2)  # noqa: C416
    run = pr.TrainLoop(step, epochs=2, lease=lease)(step.init(), loader)
    states = [step.init(), *(state.hold() for state in run)]
    moved = [
        count
        for count, (a, b) in enumerate(pairwise(states), 1)
        if not torch.equal(a["params", "0.weight"], b["params", "0.weight"])
    ]
    expected = plain.init()
    for window in (x[:6], x[6:], x[:6], x[6:]):
        expected = plain(expected, window)

    assert [3, 5, 8, 10] == moved
    assert close(expected, states[-1])


def test_an_average_around_a_window_that_an_epoch_ends_moves_once():
    """The update belongs to the iteration, and is not made after it."""
    x = torch.randn(5, 2, dtype=torch.float64)
    step = pr.wrap(make(), pr.Accumulate(4, window="epoch"), pr.EMA(0.5))
    start = step.init()
    states = [start, *pr.TrainLoop(step, epochs=1)(start, list(x[:3].split(1)))]
    before, after = start["params", "0.weight"], states[-1]["params", "0.weight"]

    assert torch.allclose((before + after) / 2, states[-1]["ema", "params", "0.weight"], rtol=0, atol=1e-15)
    assert not torch.equal(before, after)


def test_windows_that_end_with_epochs_are_resumed_anywhere():
    """The loop tells the same after a checkpoint."""
    step = pr.wrap(make(), pr.Accumulate(3, window="epoch"))
    loader = [torch.full((2, 2), float(i), dtype=torch.float64) for i in range(4)]

    check_resume(pr.TrainLoop(step, epochs=3), step.init(), loader)


def test_a_function_of_steps_cannot_tell_when_epochs_end():
    """A loop of functions refuses, and a loop of one's own says it with `finish`."""
    step = pr.wrap(make(), pr.Accumulate(3, window="epoch"))
    with pytest.raises(ValueError, match="need not know when an epoch ends"):
        pr.TrainLoop(step.__call__, steps=[pr.wrap(step, pr.EMA())], epochs=1)

    x = torch.ones(2, 2, dtype=torch.float64)
    plain = make()
    assert close(plain(plain.init(), x), step.finish(step(step.init(), x)))


@pytest.mark.parametrize("options", [{}, {"window": "epoch"}, {"schedule": "update"}], ids=["run", "epoch", "update"])
def test_an_open_window_survives_a_checkpoint(options):
    """Stopped anywhere in it."""
    step = pr.wrap(make(schedule=[pr.schedule.Linear(0.1, end=3, by="iter")]), pr.Accumulate(4, **options))
    loader = [torch.full((2, 2), float(i), dtype=torch.float64) for i in range(5)]

    check_resume(pr.TrainLoop(step, iters=7), step.init(), loader)


def test_schedules_may_count_updates():
    """Each update moves by the rate of its number, in a part window at the end too; reports between say the next."""
    schedule = [pr.schedule.MultiStep([1, 2, 3], gamma=0.5, by="iter")]
    plain, step = make(schedule=schedule), pr.wrap(make(schedule=schedule), pr.Accumulate(3, schedule="update"))
    parts = torch.randn(8, 2, 2, dtype=torch.float64)
    states = list(pr.TrainLoop(step, iters=8)(step.init(), list(parts)))
    expected = plain.init()
    for window in parts.split(3):
        expected = plain(expected, window.flatten(0, 1))

    assert close(expected, states[-1])
    assert [0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025] == [s["metrics", "lr"].item() for s in states]
    assert [0, 0, 1, 1, 1, 2, 2, 3] == [int(s["accumulate", "updates"]) for s in states]
    assert list(range(1, 9)) == [int(s["iter"]) for s in states]


def test_tokens_weigh_where_the_loss_says_so_in_a_tensor():
    """Uneven sums over tensors of weights, one of them zero, and the remainder at the end."""

    def tokens(model, x):
        mask = x[:, 0] > 0
        return pr.Loss((model(x)[:, 0].square() * mask).sum(), weight=mask.sum(), seen=mask.sum())

    x = torch.randn(10, 2, dtype=torch.float64)
    x[4:6, 0] = -1.0
    plain, step = make(tokens), pr.wrap(make(tokens), pr.Accumulate(3))
    states = list(pr.TrainLoop(step, iters=5)(step.init(), list(x.split(2))))
    expected = plain(plain(plain.init(), x[:6]), x[6:])

    assert close(expected, states[-1])
    assert [int((part[:, 0] > 0).sum()) for part in x.split(2)] == [int(s["metrics", "seen"]) for s in states]


def test_what_is_frozen_has_no_place_in_the_window():
    """And does not move."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).double()
    model[0].requires_grad_(False)
    step = pr.wrap(pr.TrainStep(model, squared, pr.optim.SGD(lr=0.1)), pr.Accumulate(2))
    start = step.init()
    x = torch.ones(2, 2, dtype=torch.float64)
    after = step(step(start, x), x)

    assert {"1.weight", "1.bias"} == set(start["accumulate", "grads"].keys())
    assert torch.equal(start["params", "0.weight"], after["params", "0.weight"])
    assert not torch.equal(start["params", "1.weight"], after["params", "1.weight"])


def test_short_gradients_are_summed_in_float32():
    """300 batches in bfloat16: a sum of 16 bits would stand still at 256."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    step = pr.wrap(
        pr.TrainStep(model, lambda model, x: model(x).float().mean(), pr.optim.SGD(lr=1.0)), pr.Accumulate(300)
    )
    state = step.init()
    for _ in range(299):
        state = step(state, torch.ones(1, 1, dtype=torch.bfloat16))

    total = state["accumulate", "grads", "weight"]
    assert (299.0, torch.float32) == (total.item(), total.dtype)
    after = step(state, torch.ones(1, 1, dtype=torch.bfloat16))
    assert torch.equal(state["params", "weight"] - 1, after["params", "weight"])


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


@pytest.mark.filterwarnings("ignore::purerun.wrappers.vmap.SameMembers")
def test_a_window_stands_around_a_mapped_program():
    """All members wait for one window."""
    plain, x = make(engine="func"), torch.randn(6, 2, dtype=torch.float64)
    outside = pr.wrap(plain, pr.Vmap(3), pr.Accumulate(2))
    state = outside.init()
    for part in x.split([4, 2]):
        state = outside(state, part)
    expected, after = plain(plain.init(), x)["params", "0.weight"], state["params", "0.weight"]
    assert torch.allclose(expected.expand_as(after), after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"count": 0}, "`count` should"),
        ({"count": -1}, "`count` should"),
        ({"count": 2, "window": "day"}, "window"),
        ({"count": 2, "schedule": "epoch"}, "schedule"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, words):
    """When it is made."""
    with pytest.raises(ValueError, match=words):
        pr.Accumulate(**wrong)


def test_a_window_of_one_is_no_window():
    """To rounding."""
    x = torch.ones(4, 2, dtype=torch.float64)
    plain, step = make(), pr.wrap(make(), pr.Accumulate(1))

    assert close(plain(plain(plain.init(), x), x), step(step(step.init(), x), x))


class Inner:
    """A step on an accelerator, as far as a window asks it."""

    trained, slot, device = ("w",), "", torch.device("cuda")

    def write(self, draft, grads):
        draft["written"] = grads


@pytest.mark.parametrize("kind", [int, lambda weight: torch.tensor(weight, device="cuda")], ids=["number", "tensor"])
def test_weights_on_an_accelerator_are_not_waited_for(kind):
    """Tensors that have no values: whoever looks at one raises.  What is counted is on the CPU."""
    wrapper, inner = pr.Accumulate(2), Inner()
    with FakeTensorMode():
        draft = {"params": {"w": torch.zeros(2, device="cuda")}, "iter": None}
        draft["accumulate"] = wrapper.memory(inner, draft)
        parts = [pr.Grads({"w": torch.ones(2, device="cuda")}, kind(weight)) for weight in (3, 5)]
    draft["accumulate"]["count"] = torch.zeros((), dtype=torch.int64)
    for grads in parts:
        assert "written" not in draft
        wrapper.write(inner, draft, grads)

    assert ("cuda", "cuda") == (draft["written"].grads["w"].device.type, draft["written"].weight.device.type)
    assert 0 == int(draft["accumulate"]["count"])
