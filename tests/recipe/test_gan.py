"""The GAN recipe: both steps learn, and the run is as resumable and as verifiable as one of a single step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import purerun as pr
from purerun import recipe as room
from purerun.checkpoint import read_weights
from purerun.cli import run as command
from purerun.recipe import load, override, text

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "gan.py"


@pytest.fixture(scope="module")
def recipe():
    """The recipe."""
    return load(RECIPE)


@pytest.fixture(scope="module")
def short(recipe):
    """The same with less data and fewer epochs."""
    return override(recipe, ["epochs=2", "train.dataset.points=2560", "log=7 iters", "checkpoint=10 iters"])


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """A run of half its length."""
    folder = tmp_path_factory.mktemp("gan")
    return folder, room.train(override(recipe, ["epochs=6"]), folder).state


def test_it_resolves_to_its_golden_text(recipe):
    """Whatever changes a value of the recipe shows in a diff of `gan.toml`."""
    assert Path(__file__).with_name("gan.toml").read_text() == text(recipe)


def test_it_finds_all_clusters(recipe, trained):
    """After half of its epochs each of the eight has its points, and most points are at one; before, none is."""
    module = recipe.module()
    before, after = (room.test(recipe, state) for state in (recipe.init(module), trained[1]))

    assert (0, 8) == (int(before["modes/covered"]), int(after["modes/covered"]))
    assert float(before["modes/near"]) < 0.05
    assert float(after["modes/near"]) > 0.4


def test_the_average_of_the_generator_is_published(trained):
    """In a file that anybody can load: the generator's average, and the critic as it is."""
    folder, state = trained
    (file,) = folder.glob("*.safetensors")
    weights = read_weights(file)

    assert {*state["params"].keys()} == {*weights}
    assert torch.equal(state["ema", "generator", "params", "generator.0.weight"], weights["generator.0.weight"])
    assert torch.equal(state["params", "critic.0.weight"], weights["critic.0.weight"])


@pytest.mark.parametrize("stop", [1, 7, 10, 13])
def test_stopped_anywhere_it_goes_on_bit_for_bit(short, tmp_path, stop):
    """In the middle of an epoch, at its end, and in the second one."""
    calls = iter(range(1, 100))
    whole = room.train(short, tmp_path / "whole").state
    room.train(short, tmp_path / "stopped", stop=lambda: next(calls) == stop)
    resumed = room.train(short, tmp_path / "stopped", resume="last").state

    assert 40 == int(whole["iter"])
    assert pr.digest(whole) == pr.digest(resumed)
    assert lines(tmp_path / "whole") == lines(tmp_path / "stopped")


def test_it_is_verified(short, tmp_path, capsys):
    """Computed again from checkpoint to checkpoint, every bit agrees."""
    room.train(short, tmp_path)
    code = command(["verify", str(tmp_path), "--recipe", str(RECIPE)])
    told = capsys.readouterr().out

    assert 0 == code, told


def lines(directory):
    """Read a log without what clocks say."""
    clocks = ("time", "data_time", "eta", "timestamp", "memory")
    read = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in clocks} for line in read]


def test_an_iteration_within_a_batch_has_no_state(short, tmp_path, capsys):
    """Both steps count; who asks for the place between them is told of the next one."""
    room.train(short, tmp_path / "run")
    asked = ["fork", str(tmp_path / "run"), "--at", "11", "--work-dir", str(tmp_path / "fork"), "--recipe", str(RECIPE)]
    code = command(asked)

    assert 2 == code
    assert "the next state is that of iteration 12" in capsys.readouterr().err
    assert not (tmp_path / "fork").exists()
    assert 0 == command(["why", str(tmp_path / "run"), "--at", "12", "--recipe", str(RECIPE)])
    assert "NoneType" not in capsys.readouterr().out
