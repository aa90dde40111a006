"""Layer-wise decay gives each stage the learning rate that hand-written groups give it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun.optim import Kind, Name, layer_decay


def net():
    """Make an embedding, three blocks and a head."""
    return nn.ModuleDict(
        {"embed": nn.Linear(2, 4), **{f"block{i}": nn.Linear(4, 4) for i in range(3)}, "head": nn.Linear(4, 1)}
    )


def loss(model, x):
    """Run the layers in their order."""
    for layer in model.values():
        x = torch.tanh(layer(x))
    return x.square().mean()


STAGES = ["embed.*", "block0.*", "block1.*", "block2.*", "head.*"]


@given(rate=st.floats(0.3, 1))
def test_it_is_torch_s_groups(rate):
    """One group of `torch.optim.AdamW` a stage, with its own rate."""
    torch.manual_seed(0)
    model = net()
    x = torch.randn(6, 2)
    step = pr.TrainStep(model, loss, pr.optim.AdamW(lr=0.1, groups=layer_decay(rate, *STAGES)))
    state = step.init()
    names = list(model)
    theirs = torch.optim.AdamW(
        [{"params": list(model[name].parameters()), "lr": 0.1 * rate ** (4 - i)} for i, name in enumerate(names)],
        fused=True,
    )
    expected = []
    for _ in range(3):
        state = step(state, x)
    before = {name: param.clone() for name, param in model.named_parameters()}
    try:
        for _ in range(3):
            theirs.zero_grad()
            loss(model, x).backward()
            theirs.step()
        expected = {name: param.detach().clone() for name, param in model.named_parameters()}
    finally:
        model.load_state_dict(before)

    for name, param in expected.items():
        assert torch.allclose(param, state["params", name], rtol=1e-5, atol=1e-7), name


def test_a_stage_may_be_any_match():
    """Several patterns, or a match of its own; the decay of weights goes along."""
    groups = layer_decay(0.5, ["embed.*", "block*"], ~Kind("bias") & Name("head.*"), decay=0.0)

    assert [{"lr": 0.5, "weight_decay": 0.0}, {"lr": 1.0, "weight_decay": 0.0}] == [dict(g.factors) for g in groups]


@pytest.mark.parametrize("rate", [0, -0.5, 1.5, float("nan"), "0.5"])
def test_a_rate_lies_between_0_and_1(rate):
    """Others are refused."""
    with pytest.raises(ValueError, match="a rate of layer decay in"):
        layer_decay(rate, "*")


def test_stages_are_needed():
    """A decay of nothing is refused, as is a stage that matches nothing."""
    with pytest.raises(ValueError, match="expected the stages"):
        layer_decay(0.5)
    with pytest.raises(pr.optim.GroupError, match="to match a parameter"):
        pr.TrainStep(net(), loss, pr.optim.SGD(groups=layer_decay(0.5, "stem.*", "head.*")))
