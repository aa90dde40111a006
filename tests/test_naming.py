"""The names of a `state_dict`: PyTorch's own `state_dict` is the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.naming import Naming
from purerun.testing import MODELS


class Odd(nn.Module):
    """Tied parameters and buffers, a module that stands in two places, and buffers that no file has."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.inner = nn.ModuleDict({"head": nn.Linear(3, 4, bias=False), "norm": nn.BatchNorm1d(3)})
        self.inner["head"].weight = self.embed.weight
        self.again = self.inner["norm"]
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.inner["head"].register_buffer("deep", torch.ones(3), persistent=False)
        self.register_buffer("mean", self.again.running_mean)

    def forward(self, x):
        return self.inner["head"](self.again(self.embed(x)))


MODULES = {"odd": Odd(), "plain": nn.Linear(2, 1), **{case.name: case.module() for case in MODELS}}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_the_tensors_of_a_state_are_spread_over_the_names_of_a_state_dict(module):
    """Each name of the `state_dict`, with its own tensor, and no other."""
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    found, expected = Naming.of(module).spread(tensors), module.state_dict(keep_vars=True)

    assert set(expected) == set(found)
    assert all(found[name] is tensor for name, tensor in expected.items())


def test_the_text_of_a_step_tells_them():
    """Whoever has the text needs no module."""
    module = Odd()
    step = pr.wrap(pr.TrainStep(module, lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1)), pr.EMA(0.9))

    assert Naming.of(module) == Naming.told(step.text())
    assert {"inner.head.weight": "embed.weight", "again.weight": "inner.norm.weight"}.items() <= dict(
        Naming.told(step.text()).first
    ).items()


def test_a_module_with_plain_names_adds_nothing_to_the_text():
    """The fingerprints of most models do not know that there is such a thing."""
    assert [] == Naming.of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))).lines()


def test_tied_and_untied_are_two_programs():
    """Though their parameters have the same names and shapes."""
    step = pr.TrainStep(Odd(), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    module = Odd()
    module.mean = torch.zeros(3)
    other = pr.TrainStep(module, lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))

    assert step.fingerprint().tolist() != other.fingerprint().tolist()
