"""States with the weights of a file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.checkpoint import WeightsDiffer
from tests.checkpoint.pickled import written


class Net(nn.Module):
    """Tied weights, a norm, and a buffer that no file has."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(3), persistent=False)
        nn.init.normal_(self.norm.weight)

    def forward(self, x):
        return self.head(self.norm(self.embed(x) * self.mask))


def step(seed=0, *wrappers):
    return pr.wrap(pr.TrainStep(Net(seed), lambda model, x: model(x).square().mean(), pr.optim.Adam(lr=0.1)), *wrappers)


X = torch.arange(5)


@pytest.fixture
def file(tmp_path):
    return written(tmp_path, Net(seed=1).state_dict())


def outputs(module):
    with torch.no_grad():
        return module.eval()(X)


def test_the_weights_of_another_module_give_its_outputs(file):
    """Tied weights and buffers that no file has included; strictly."""
    model = step()
    state, fit = pr.load_weights(model.init(seed=0), file)

    assert () == fit.rows
    assert torch.equal(outputs(Net(seed=1)), pr.PredictStep(Net())(state, (X,)))


def test_all_else_of_a_state_stays(file):
    """Counters, hyper-parameters, the optimizer's slots: of a fresh state, and of one in the middle of a run."""
    model = step()
    before = model(model.init(seed=3), X)
    after, _ = pr.load_weights(before, file)

    changed = {leaf.path for leaf in pr.diff(before, after)}
    assert {f"params/{name}" for name in ("embed.weight", "norm.weight", "norm.bias", "head.bias")} <= changed
    assert {"params", "buffers"} == {path.partition("/")[0] for path in changed}
    assert not torch.equal(before["params", "embed.weight"], after["params", "embed.weight"])


def test_an_average_begins_at_the_new_weights(file):
    """It would pull an evaluation back to weights that were never meant."""
    state, _ = pr.load_weights(step(0, pr.EMA(0.9)).init(seed=0), file)

    assert torch.equal(outputs(Net(seed=1)), pr.PredictStep(Net(), weights="ema")(state, (X,)))


def test_the_state_of_a_checkpoint_fits_as_its_file_does(tmp_path):
    """purerun's own checkpoints, the average of one included."""
    model = step(1, pr.EMA(0.5))
    trained = model(model.init(seed=0), X)
    pr.save(trained, tmp_path / "a")
    state, fit = pr.load_weights(step().init(seed=0), tmp_path / "a", weights="ema")

    assert () == fit.rows
    assert torch.equal(trained["ema", "params", "embed.weight"], state["params", "embed.weight"])


def test_a_strict_reading_refuses_what_does_not_fit(tmp_path):
    """With the rows; otherwise what fits is taken, and the rest is as it was."""
    weights = Net(seed=1).state_dict()
    del weights["norm.weight"]
    file = written(tmp_path, {**weights, "more": torch.ones(2), "head.bias": torch.ones(7)})
    fresh = step().init(seed=0)
    with pytest.raises(
        WeightsDiffer, match=r"a\.pth: 5 tensors taken, 1 missing, 1 unexpected, 1 mismatched"
    ) as caught:
        pr.load_weights(fresh, file)
    state, fit = pr.load_weights(fresh, file, strict=False)

    assert fit == caught.value.match
    assert {"norm.weight", "more", "head.bias"} == {row.name for row in fit.rows}
    assert torch.equal(fresh["params", "head.bias"], state["params", "head.bias"])
    assert torch.equal(weights["embed.weight"], state["params", "embed.weight"])


def test_a_file_of_which_nothing_fits_is_refused(tmp_path):
    """To go on as if something had been loaded helps nobody, strict or not."""
    file = written(tmp_path, {f"backbone.{name}": tensor for name, tensor in Net(seed=1).state_dict().items()})
    with pytest.raises(WeightsDiffer, match=r"0 tensors taken.*--rename '\^backbone\\\.='"):
        pr.load_weights(step().init(seed=0), file, strict=False)

    state, _ = pr.load_weights(step().init(seed=0), file, rename={r"^backbone\.": ""})
    assert torch.equal(outputs(Net(seed=1)), pr.PredictStep(Net())(state, (X,)))


def test_the_state_before_stays_as_it_is(file):
    """It is a pure function but for the reading."""
    fresh = step().init(seed=0)
    digest = pr.digest(fresh)
    first, _ = pr.load_weights(fresh, file)
    second, _ = pr.load_weights(fresh, file)

    assert digest == pr.digest(fresh)
    assert pr.digest(first) == pr.digest(second)
