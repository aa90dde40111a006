"""Validation as a hook: it writes the scores of the state it sees, and nothing else."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.hooks import Every, Last, Validate
from purerun.testing import check_hooks_write_only_declared
from purerun.testing.snapshot import of_state


def network():
    """Make a small module with buffers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))


def loss(model, batch):
    """Compute the cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


DATA = pr.data.Tensors(torch.arange(24.0).reshape(12, 2).sin(), torch.arange(12) % 3)
LOADER = pr.Loader(DATA, batch_size=5, shuffle=True)


def run(*, wrappers=(), weights="", limit=None, **options):
    """Train for three epochs with a validation hook; give the hook and all states."""
    model = network()
    step = pr.wrap(pr.TrainStep(model, loss, pr.optim.SGD(lr=0.5)), *wrappers)
    judge = pr.ValLoop(pr.ValStep(model, metrics={"accuracy": pr.metrics.Accuracy()}, weights=weights))
    hook = Validate(judge, pr.Loader(DATA, batch_size=7), **options)
    loop = pr.TrainLoop(step, hooks=[hook], **(limit or {"epochs": 3}))
    return hook, list(loop(step.init(seed=1), LOADER))


def judged(states):
    """List the iterations whose scores the states hold."""
    return [int(state["scores", "iter"]) for state in states]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("1 epoch", [-1, -1, 3, 3, 3, 6, 6, 6, 9]),
        ("2 epochs", [-1, -1, -1, -1, -1, 6, 6, 6, 6]),
        ("2 iters", [-1, 2, 2, 4, 4, 6, 6, 8, 8]),
        ("last", [-1] * 8 + [9]),
        (Every(2, "epoch") | Last(), [-1, -1, -1, -1, -1, 6, 6, 6, 9]),
        (Every(1, "epoch", begin=2), [-1, -1, -1, -1, -1, 6, 6, 6, 9]),
        (Every(1, "epoch", changes=[(3, 3)]), [-1, -1, 3, 3, 3, 3, 3, 3, 9]),
    ],
    ids=["epochs", "every second", "iterations", "last", "every second and last", "from the second", "changing"],
)
def test_validation_is_when_it_is_due(every, expected):
    """Counters that have advanced decide; in between the scores stay."""
    assert expected == judged(run(every=every)[1])


def test_the_scores_are_those_of_the_state():
    """What a validation loop says of it, as doubles on the CPU."""
    hook, states = run(every="1 iter")
    for state in states:
        expected = hook.loop(state, hook.loader)["accuracy"]

        assert float(expected) == state["scores", "accuracy"].item()
        assert torch.float64 == state["scores", "accuracy"].dtype


def test_before_training():
    """The scores of the first state stand until the first validation; not again after a resume."""
    hook, states = run(every="2 epochs", before=True)
    first = hook.loop(pr.TrainStep(network(), loss, pr.optim.SGD(lr=0.5)).init(1), hook.loader)["accuracy"]

    assert [0, 0, 0, 0, 0, 6, 6, 6, 6] == judged(states)
    assert float(first) == states[0]["scores", "accuracy"].item()


def test_scores_are_not_a_number_until_there_are_some():
    """So that the state has its final shape from the first iteration."""
    _, states = run(every="1 epoch")

    assert math.isnan(states[0]["scores", "accuracy"])
    assert not math.isnan(states[2]["scores", "accuracy"])


def test_validation_does_not_disturb_training():
    """With it and without, and however often, the weights are the same."""
    digests = {
        pr.digest(run(every=every)[1][-1].replace(scores={"accuracy": 0.0, "iter": 0})) for every in ("1 iter", "last")
    }

    assert 1 == len(digests)


def test_an_average_is_judged():
    """The weights of a slot."""
    hook, states = run(every="last", wrappers=[pr.EMA(0.9)], weights="ema")
    plain = attrs.evolve(hook.loop.step, weights="")
    averaged = states[-1].replace(params=states[-1]["ema", "params"], buffers=states[-1]["ema", "buffers"])

    assert states[-1]["scores", "accuracy"].item() == float(pr.ValLoop(plain)(averaged, hook.loader)["accuracy"])


def test_two_validations_have_two_prefixes():
    """Their scores stand side by side."""
    hook, states = run(every="last", prefix="val/")
    other = attrs.evolve(hook, prefix="test/")
    state = other(states[-1].replace(scores=other.slots(states[-1])["scores"]))

    assert {"val/accuracy", "val/iter", "test/accuracy", "test/iter"} == set(state["scores"].names())


def test_it_writes_scores_only():
    """And leaves the state that it judges alone."""
    hook, states = run(every="last")
    looks = of_state(states[0])
    check_hooks_write_only_declared(hook, states[0])

    assert looks == of_state(states[0])
    assert ("scores",) == hook.writes
