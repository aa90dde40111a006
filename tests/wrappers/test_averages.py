"""Averages over time: torch's own averaged model, beside the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import purerun as pr
from purerun.testing import MODELS

CASES = [case for case in MODELS if case.inputs == "vectors" and case.name != "orthogonal"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_torch_s_averaged_model(case):
    """The same average of the trained parameters after each of ten iterations."""
    step = pr.wrap(pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.1)), pr.EMA(0.9))
    state = step.init(seed=1)
    model = case.module()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)  # its first update copies
    for seed in range(10):
        state = step(state, case.data(seed))
        model.load_state_dict({**state["params"], **state["buffers"]}, strict=False)
        averaged.update_parameters(model)

    expected = dict(averaged.module.named_parameters())
    assert {name for name, param in model.named_parameters() if param.requires_grad} == set(
        state["ema", "params"].names()
    )
    for name, leaf in state["ema", "params"].items():
        assert torch.allclose(expected[name], leaf, rtol=1e-6, atol=1e-7), name


def test_buffers_are_copied():
    """The average has the buffers of the last iteration."""
    case = next(case for case in MODELS if case.name == "batch norm")
    step = pr.wrap(pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.1)), pr.EMA(0.9))
    state = step(step.init(), case.data())

    assert all(torch.equal(leaf, state["ema", "buffers", name]) for name, leaf in state["buffers"].items())


@pytest.mark.parametrize(("decay", "which"), [(0.0, 1), (1.0, 0)], ids=["all new", "all old"])
def test_the_ends_of_the_scale(decay, which):
    """At 0 the average is the weights, at 1 it stays where it began."""
    step = pr.wrap(pr.TrainStep(nn.Linear(2, 1), lambda m, x: m(x).mean(), pr.optim.SGD(lr=0.1)), pr.EMA(decay))
    states = [step.init()]
    states.append(step(states[0], torch.ones(3, 2)))

    for name, leaf in states[1]["ema", "params"].items():
        assert torch.allclose(states[which]["params", name], leaf)


def test_the_weights_do_not_see_it():
    """Training with an average beside it is training."""
    plain = pr.TrainStep(nn.Linear(2, 1), lambda m, x: m(x).square().mean(), pr.optim.AdamW(lr=0.1))
    step = pr.wrap(plain, pr.EMA(0.9))
    first, second = plain.init(), step.init()
    for _ in range(3):
        first, second = plain(first, torch.ones(3, 2)), step(second, torch.ones(3, 2))

    assert pr.digest(first) == pr.digest(second.exclude("ema"))


def test_order_matters_and_says_what_it_means():
    """Inside of an accumulation it averages over updates, outside over iterations."""
    x = torch.ones(3, 2)
    plain = pr.TrainStep(nn.Linear(2, 1), lambda m, x: m(x).square().mean(), pr.optim.SGD(lr=0.1))
    outside, inside = (
        pr.wrap(plain, *pair) for pair in ([pr.Accumulate(2), pr.EMA(0.5)], [pr.EMA(0.5), pr.Accumulate(2)])
    )
    a, b = outside.init(), inside.init()
    for _ in range(4):
        a, b = outside(a, x), inside(b, x)

    assert torch.equal(a["params", "weight"], b["params", "weight"])
    assert not torch.equal(a["ema", "params", "weight"], b["ema", "params", "weight"])


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_is_a_fraction(decay):
    """Others are refused when they are made."""
    with pytest.raises(ValueError, match="`decay` should"):
        pr.EMA(decay)
