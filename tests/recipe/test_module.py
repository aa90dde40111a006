"""A module as a value: checked when it is written, built from a key."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.recipe import RecipeError


class Net(nn.Module):
    """Draws from all three generators, as code of others may."""

    def __init__(self, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.scale = nn.Parameter(torch.tensor([np.random.rand(), random.random()]))


class Pair(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second


def weights(module):
    return {name: value.tolist() for name, value in module.state_dict().items()}


def test_the_weights_are_a_function_of_the_key():
    """Whatever was drawn before, one key gives the same weights, and another key others."""
    net = pr.Module(Net, width=3)
    first = weights(net.build(pr.Key.of(0, "init")))
    torch.rand(5), np.random.rand(5), random.random()

    assert first == weights(net.build(pr.Key.of(0, "init")))
    assert first != weights(net.build(pr.Key.of(1, "init")))


def test_no_generator_is_disturbed():
    """Building a module cannot be noticed by whoever draws next."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    pr.Module(Net, width=3).build(pr.Key.of(0))

    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert before[2] == random.getstate()


def test_each_build_makes_a_new_module():
    """No tensor is shared: what happens to one module does not reach another."""
    net = pr.Module(Net, width=3)
    first, second = net.build(pr.Key.of(0)), net.build(pr.Key.of(0))
    with torch.no_grad():
        first.linear.weight.zero_()

    assert first is not second
    assert second.linear.weight.count_nonzero() > 0


def test_a_part_is_built_from_a_key_of_its_own():
    """A change of one part leaves the weights of the other as they were."""
    narrow = pr.Module(Pair, first=pr.Module(nn.Linear, in_features=2, out_features=2), second=pr.Module(Net, width=3))
    wide = narrow.replace(first=pr.Module(nn.Linear, in_features=9, out_features=9))
    key = pr.Key.of(0)

    assert weights(narrow.build(key).second) == weights(wide.build(key).second)
    assert weights(narrow.build(key).first) != weights(wide.build(key).first)


def test_modules_are_values():
    """Two of the same target and arguments are equal, and hash alike."""
    assert pr.Module(Net, width=3) == pr.Module(Net, width=3)
    assert pr.Module(Net, width=3) != pr.Module(Net, width=4)
    assert hash(pr.Module(Net, width=3)) == hash(pr.Module(Net, width=3))
    assert "Module(Net, width=3)" == repr(pr.Module(Net, width=3))


def test_replace_leaves_the_value_as_it_is():
    """The next value is another one."""
    net = pr.Module(Net, width=3)

    assert pr.Module(Net, width=3, dropout=0.5) == net.replace(dropout=0.5)
    assert pr.Module(Net, width=3) == net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pr.Module(Net), "Net needs width; give them as keyword arguments"),
        (lambda: pr.Module(Net, width=3, dropuot=0.1), "Net takes no argument 'dropuot'; did you mean 'dropout'?"),
        (lambda: pr.Module(Net(3)), "expected a class or function that makes the module, got Net; "),
        (lambda: pr.Module(3), "expected a class or function that makes the module, got int; "),
        (lambda: pr.Module(dict).build(pr.Key.of(0)), "expected dict to make an nn.Module, got dict"),
    ],
)
def test_what_makes_no_module_is_refused(make, message):
    """With the names that there are."""
    with pytest.raises(RecipeError) as caught:
        make()

    assert str(caught.value).startswith(message)


def test_an_open_signature_takes_any_keyword():
    """A function with `**options` passes them on to somebody who knows them."""

    def make(width: int, **options: object) -> nn.Module:
        return nn.Linear(width, options["out"])

    assert 4 == pr.Module(make, width=2, out=4).build(pr.Key.of(0)).out_features
