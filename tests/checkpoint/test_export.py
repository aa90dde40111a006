"""Weights handed on: files that load without purerun."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import purerun as pr
from purerun.checkpoint import CheckpointError, SaveError, export, path_of, publish_weights
from purerun.testing import MODELS, counted
from tests.checkpoint.pickled import written


def read(file):
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, weights_only=True)  # noqa: TID251 - whether it loads is the question


def two_steps(case, *wrappers):
    module = case.module()
    step = pr.wrap(pr.TrainStep(module, case.loss, pr.optim.SGD(lr=0.1), unused="zero"), *wrappers)
    return step(step(step.init(seed=0), case.data(0)), case.data(1))


def outputs(module, x):
    with torch.no_grad():
        return module.eval()(x)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_a_plain_module_loads_it_strictly(tmp_path, case, ending):
    """Of every kind of model, tied ones included, and computes what the state computes."""
    state = two_steps(case)
    pr.save(state, tmp_path / "a")
    names = export(tmp_path / "a", tmp_path / f"a{ending}")
    module = case.module(seed=7)
    module.load_state_dict(read(tmp_path / f"a{ending}"), strict=True)

    assert set(module.state_dict()) == set(names)
    own = dict([*module.named_parameters(), *module.named_buffers()])
    assert all(torch.equal(own[name], leaf) for name, leaf in state["params"].items())
    assert all(torch.equal(own[name], leaf) for name, leaf in state["buffers"].items() if name in names)


class Tied(nn.Module):
    """Tied weights, and a buffer that no file has."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, x):
        return self.head(self.embed(x) * self.mask)


@pytest.fixture
def tied(tmp_path):
    """A run of a tied model with an average, as another process would find it."""
    step = pr.wrap(pr.TrainStep(Tied(), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1)), pr.EMA(0.5))
    state = step(step(step.init(seed=0), torch.arange(5)), torch.arange(5))
    pr.save(state, path_of(tmp_path / "run", 2))
    return tmp_path / "run", state


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("weights", ["", "ema"])
def test_tied_weights_are_there_under_all_their_names(tmp_path, tied, weights, ending):
    """The checkpoint says which they are, in the text of its step; no module is needed to know."""
    run, state = tied
    export(run, tmp_path / f"a{ending}", weights=weights)
    found, module = read(tmp_path / f"a{ending}"), Tied()
    module.load_state_dict(found, strict=True)
    x = torch.arange(5)

    assert {"embed.weight", "head.weight", "head.bias"} == set(found)
    assert torch.equal(pr.PredictStep(Tied(), weights=weights)(state, (x,)), outputs(module, x))


def test_files_of_others_are_converted(tmp_path):
    """A pickle becomes a file that cannot become code."""
    weights = nn.Linear(3, 2).state_dict()
    export(written(tmp_path, {"state_dict": weights}), tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")

    assert weights.keys() == found.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in found.items())


def test_no_file_is_overwritten_unless_asked(tmp_path, tied):
    """What is there stays whole, whatever goes wrong."""
    place = tmp_path / "a.pth"
    place.write_text("mine")
    with pytest.raises(CheckpointError, match=r"a\.pth: a file is there; choose another name, or replace"):
        export(tied[0], place)
    with pytest.raises(CheckpointError, match="expected averaged weights in `mean`"):
        export(tied[0], place, weights="mean", overwrite=True)
    assert "mine" == place.read_text()

    export(tied[0], place, overwrite=True)
    assert {"embed.weight", "head.weight", "head.bias"} == set(read(place))


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_file_is_there_whole_or_not_at_all(tmp_path, tied, monkeypatch, call, ending):
    """The disk is full at any moment: the old file stays, and nothing is beside it."""
    place = tmp_path / "out" / f"a{ending}"
    place.parent.mkdir()
    place.write_text("mine")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(SaveError, match=r"cannot be written: .*No space left"):
        export(tied[0], place, overwrite=True)
    assert "mine" == place.read_text()
    assert [place] == list(place.parent.iterdir())


@pytest.mark.parametrize("place", ["a.txt", "a", "s3://bucket/a.pth", "memory://a.pth"])
def test_a_place_that_no_file_can_have_is_refused(tmp_path, tied, place, monkeypatch):
    """The ending says what to write; a URL would become a folder of odd name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"expected a file of this machine that ends in \.safetensors, \.pth, \.pt"
    ):
        export(tied[0], place)


def test_a_folder_is_not_replaced(tmp_path, tied):
    """Even if asked."""
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(CheckpointError, match="a folder is there"):
        export(tied[0], tmp_path / "a.pth", overwrite=True)


def test_dtypes_that_safetensors_has_not_are_refused(tmp_path):
    """As bytes they would load as something else; a pickle has them."""
    state = counted(params={"w": torch.ones(2, dtype=torch.complex128)})
    pr.save(state, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"expected a dtype that \.safetensors has at w, got torch\.complex128"):
        export(tmp_path / "a", tmp_path / "a.safetensors")

    export(tmp_path / "a", tmp_path / "a.pth")
    assert torch.equal(state["params", "w"], read(tmp_path / "a.pth")["w"])


def test_published_weights_are_named_by_their_bytes(tmp_path, tied):
    """Eight hex digits of the file's sha256; the same weights twice are one file, other weights another."""
    run, state = tied
    file = publish_weights(run, tmp_path / "out", "net-v1.0")
    again = publish_weights(run / "checkpoints" / "iter_00000002", tmp_path / "out", "net-v1.0")
    average = publish_weights(run, tmp_path / "out", "net-v1.0", "ema")

    assert f"net-v1.0-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.safetensors" == file.name
    assert file == again != average
    assert {file, average} == set((tmp_path / "out").iterdir())
    assert torch.equal(state["params", "embed.weight"], load_file(file)["head.weight"])


@pytest.mark.parametrize("name", ["", "../a", "/a", "a/b", ".a", "a\0", "a b"])
def test_published_weights_have_a_plain_name(tmp_path, tied, name):
    """Nothing is written elsewhere."""
    with pytest.raises(CheckpointError, match="expected a plain name for published weights"):
        publish_weights(tied[0], tmp_path / "out", name)
    assert not (tmp_path / "out").exists()
