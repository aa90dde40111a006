"""Weights alone, read from whatever holds them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import purerun as pr
from purerun.checkpoint import CheckpointError, path_of, read_weights
from tests.checkpoint.pickled import written


def trained(*wrappers):
    """Make the state after two steps, whose average and weights differ."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[0].bias.requires_grad_(False)
    step = pr.wrap(pr.TrainStep(module, lambda model, x: model(x).square().mean(), pr.optim.Adam(lr=0.1)), *wrappers)
    return step(step(step.init(seed=0), torch.randn(8, 3)), torch.randn(8, 3))


STATE = trained(pr.EMA(0.9))


def same(expected, actual):
    return dict(expected).keys() == actual.keys() and all(
        torch.equal(leaf, actual[name]) for name, leaf in expected.items()
    )


def weights_of(state):
    return {**dict(state["params"].items()), **dict(state["buffers"].items())}


@pytest.fixture
def run(tmp_path):
    pr.save(STATE.replace(params={"0.bias": torch.ones(4)}), path_of(tmp_path / "run", 1))
    pr.save(STATE, path_of(tmp_path / "run", 2))
    return tmp_path / "run"


def test_of_a_run_its_last_checkpoint_is_read(run):
    """Parameters and buffers by their names; of the first one when that is named."""
    assert same(weights_of(STATE), read_weights(run))
    assert [1.0] * 4 == read_weights(str(path_of(run, 1)))["0.bias"].tolist()


def test_the_average_is_what_a_validation_of_it_reads(run):
    """The averaged parameters with their buffers; what is not trained is not averaged, and is the model's."""
    average = {**weights_of(STATE), **dict(STATE["ema", "params"].items()), **dict(STATE["ema", "buffers"].items())}
    found = read_weights(run, "ema")
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    predict = pr.PredictStep(module, weights="ema")
    x = torch.randn(5, 3)
    expected = predict(STATE, x)
    module.load_state_dict(found, strict=True)

    assert same(average, found)
    assert not torch.equal(found["0.weight"], STATE["params", "0.weight"])
    assert torch.equal(expected, module.eval()(x))


def test_only_what_is_taken_is_read(run):
    """A flipped byte of an optimizer's slot is none of the weights' business; one of the weights is found."""
    file = path_of(run, 2) / "state.safetensors"
    slot, weight = (
        bytes(pr.identity.read_bytes(leaf))
        for leaf in (STATE["optim", "exp_avg", "0.weight"], STATE["params", "0.weight"])
    )
    raw = file.read_bytes()
    file.write_bytes(raw.replace(slot, bytes([slot[0] ^ 1]) + slot[1:]))
    assert same(weights_of(STATE), read_weights(run))

    file.write_bytes(raw.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    with pytest.raises(CheckpointError, match=r"at params/0\.weight"):
        read_weights(run)


def test_a_plain_safetensors_file_is_read(tmp_path):
    """With whatever metadata."""
    tensors = {"a/b.w": torch.randn(2, 3), "n": torch.tensor(3)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"_target_": "os.system"})

    assert same(tensors, read_weights(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".bin"])
def test_a_file_of_torch_save_is_read(tmp_path, ending):
    """Whatever its ending."""
    tensors = {"w": torch.randn(2, 3)}

    assert same(tensors, read_weights(written(tmp_path, {"state_dict": tensors}, f"a{ending}")))


def test_a_run_may_be_called_as_a_file_is(tmp_path):
    """A folder is never taken for a file."""
    pr.save(STATE, tmp_path / "a.pth")

    assert same(weights_of(STATE), read_weights(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("none", "", "none: expected a checkpoint or the directory of a run, found nothing"),
        ("none.pth", "", r"none\.pth: expected a file with weights, found none"),
        ("none.safetensors", "", r"none\.safetensors: expected a file with weights, found none"),
        ("text.txt", "", r"text\.txt: expected a checkpoint, a run, or a file that ends in \.safetensors, "),
        ("text.safetensors", "", r"text\.safetensors: expected a sound \.safetensors file: "),
        ("plain.safetensors", "ema", r"plain\.safetensors: has one set of weights, and no 'ema'"),
        ("run", "mean", "expected averaged weights in `mean`, found ema"),
        ("run", "optim", "expected averaged weights in `optim`, found"),
    ],
)
def test_what_holds_no_such_weights_is_refused(run, tmp_path, name, weights, message):
    """It is said what there is."""
    for file in ("text.txt", "text.safetensors"):
        (tmp_path / file).write_text("hello")
    save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors")

    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / name, weights)
