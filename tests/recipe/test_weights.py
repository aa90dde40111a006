"""Which weights a run begins with."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun import recipe as room
from purerun.checkpoint import WeightsDiffer
from purerun.recipe import Weights
from purerun.recipe.weights import anew

DATA = pr.data.Tensors(torch.linspace(-1, 1, 24).view(8, 3))

RECIPE = pr.Recipe(
    model=pr.Module(nn.Linear, in_features=3, out_features=2),
    loss=lambda model, batch: model(batch[0]).square().mean(),
    train=pr.Loader(DATA, batch_size=4),
    optimizer=pr.optim.SGD(lr=0.1),
    wrappers=[pr.EMA(0.9)],
    iters=2,
    device="cpu",
)


@attrs.frozen
class Slow(pr.Wrapper):
    """A wrapper that makes something of the first weights that is no average: their squares."""

    @property
    def slot(self):
        return "slow"

    def memory(self, step, draft):
        return {name: param.square() for name, param in draft["params"].items()}


@pytest.fixture
def source(tmp_path):
    """A run to take weights from, its average unlike its weights."""
    room.train(RECIPE, tmp_path / "source")
    return tmp_path / "source"


def begin(recipe, weights):
    module = recipe.module()
    return anew(recipe, recipe.train_step(module), module, weights=weights)


@pytest.mark.parametrize("entry", ["", "ema"])
def test_every_slot_begins_at_the_new_weights(source, entry):
    """An average, and whatever else a wrapper makes of the weights that it finds."""
    recipe = attrs.evolve(RECIPE, wrappers=[pr.EMA(0.9), Slow()], seed=5)
    state = begin(recipe, Weights(source, entry=entry)).state
    trained = pr.load(source)
    expected = (trained["ema"] if entry else trained)["params", "weight"]

    assert not torch.equal(trained["params", "weight"], trained["ema", "params", "weight"])
    assert torch.equal(expected, state["params", "weight"])
    assert torch.equal(expected, state["ema", "params", "weight"])
    assert torch.equal(expected.square(), state["slow", "weight"])
    assert (0, 0, 5) == tuple(int(state[name]) for name in ("iter", "epoch", "seed"))


def test_without_weights_a_run_begins_at_its_seed():
    """As the recipe's own first state."""
    assert pr.digest(RECIPE.init(RECIPE.module())) == pr.digest(begin(RECIPE, None).state)


def test_a_run_begins_with_what_fits_of_another_model(source, tmp_path):
    """And whoever started it is told in which names the two differ."""
    wider = attrs.evolve(RECIPE, model=pr.Module(nn.Linear, in_features=3, out_features=2, bias=False))
    notes = []
    with pytest.raises(WeightsDiffer, match="1 unexpected; the first is `bias`"):
        room.train(wider, tmp_path / "strict", weights=source)
    room.train(wider, tmp_path / "loose", weights=Weights(source, strict=False), say=notes.append)

    assert f"starting with the weights of {source}: 1 tensors taken, 1 unexpected" == notes[0].splitlines()[0]
    assert "unexpected  bias  -         float32 [2]" == notes[0].splitlines()[-1]
    assert not (tmp_path / "strict").exists()
