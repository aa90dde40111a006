"""Sweeps as recipes: a run of a population does all that a run does, and each member is a run of its own."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import purerun as pr
from purerun import recipe as room
from purerun.checkpoint import CheckpointError, export, names, path_of_name, read_manifest
from purerun.history import verify, why
from purerun.recipe import RecipeError, Weights
from purerun.sinks import SinkError

LRS = [0.3, 0.1, 0.01]
_X = torch.linspace(-2, 2, 240).view(60, 4).sin()
DATA = pr.data.Tensors(x=_X, y=_X[:, :3].argmax(1))


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def loss(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


def forward(model, batch):
    return model(batch["x"])


def make(members=3, **changes):
    loader = pr.Loader(DATA, batch_size=20, order=pr.data.Seeded(pr.data.Shuffle(), seed=0))
    given = {
        "model": pr.Module(net),
        "loss": loss,
        "forward": forward,
        "engine": "func",
        "train": loader,
        "val": loader,
        "test": loader,
        "optimizer": pr.optim.AdamW(lr=0.1),
        "schedule": pr.schedule.Cosine(end=4),
        "wrappers": [pr.Vmap(members, hyper={"lr": LRS[:members]})],
        "metrics": {"accuracy": pr.metrics.Each(members, pr.metrics.Accuracy(target="y"))},
        "epochs": 4,
        "seed": 5,
        "device": "cpu",
    }
    return pr.Recipe(**{**given, **changes})


def alone(place):
    """Make the recipe that a member is a run of."""
    return make(
        wrappers=[],
        optimizer=pr.optim.AdamW(lr=LRS[place]),
        metrics={"accuracy": pr.metrics.Accuracy(target="y")},
        seed=5 + place,
    )


def test_each_member_is_the_run_with_its_seed(tmp_path):
    members = pr.unstack(room.train(make(), tmp_path / "sweep").state)
    for place, member in enumerate(members):
        solo = room.train(alone(place), tmp_path / f"{place}").state
        for name, leaf in solo["params"].items():
            torch.testing.assert_close(member["params", name], leaf, rtol=1e-4, atol=1e-5)
    first, second, _ = members
    assert not torch.allclose(first["params", "0.weight"], second["params", "0.weight"], atol=1e-2)


def test_members_begin_as_their_runs_do_bit_for_bit():
    recipe = make()
    for place, member in enumerate(pr.unstack(recipe.init(recipe.module()))):
        solo = alone(place)
        assert pr.digest(member) == pr.digest(solo.init(solo.module()))


def test_a_stopped_sweep_goes_on_and_is_computed_again(tmp_path):
    whole = room.train(make(), tmp_path / "whole").state
    left = iter(range(7))
    stopped = room.train(make(), tmp_path / "run", stop=lambda: next(left, None) is None)
    assert not stopped.finished
    resumed = room.train(make(), tmp_path / "run", resume="last")
    assert resumed.finished
    assert pr.digest(resumed.state) == pr.digest(whole)
    assert all(finding.agrees for finding in verify(tmp_path / "run", make()))


def test_the_log_the_checkpoints_and_the_test_tell_of_each_member(tmp_path):
    state = room.train(make(best=["accuracy[1]"]), tmp_path / "run").state
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["mode"] == "val"]
    assert {f"accuracy[{place}]" for place in range(3)} <= set(validations[-1])
    scores = read_manifest(path_of_name(tmp_path / "run", names(tmp_path / "run")[-1])).scores
    assert [scores[f"accuracy[{place}]"] for place in range(3)] == room.test(make(), state)["accuracy"].tolist()
    assert (tmp_path / "run" / "checkpoints" / "best_accuracy_1_").exists()


def test_why_means_over_the_members(tmp_path):
    room.train(make(), tmp_path / "run")
    found = why(tmp_path / "run", make(), 1)
    assert found.trouble == ""
    assert {"loss[0]", "loss[1]", "loss[2]", "lr[0]"} <= set(found.report)
    recipe = make()
    models = pr.unstack(recipe.init(recipe.module()))
    sample = found.samples[0]
    row = {name: leaf[sample.index : sample.index + 1] for name, leaf in (("x", _X), ("y", _X[:, :3].argmax(1)))}
    module = recipe.module().eval()
    each = [
        loss(lambda x, s=state: torch.func.functional_call(module, dict(s["params"].items()), x), row)
        for state in models
    ]
    assert sample.loss == pytest.approx(float(sum(each)) / 3, rel=1e-5)


def test_a_member_is_exported(tmp_path):
    state = room.train(make(), tmp_path / "run").state
    export(tmp_path / "run", tmp_path / "one.safetensors", member=1)
    module = net()
    module.load_state_dict(load_file(tmp_path / "one.safetensors"))
    assert torch.equal(module[0].weight, pr.unstack(state)[1]["params", "0.weight"])
    for member in (None, 3, -1):
        with pytest.raises(CheckpointError, match="expected the number of a member, 0 to 2"):
            export(tmp_path / "run", tmp_path / "two.pth", member=member)
    room.train(alone(0), tmp_path / "solo")
    with pytest.raises(CheckpointError, match="found a single run"):
        export(tmp_path / "solo", tmp_path / "two.pth", member=0)


def test_what_has_no_meaning_for_a_sweep_is_refused(tmp_path):
    with pytest.raises(SinkError, match="a population of 3; leave publish out"):
        room.train(make(publish="params"), tmp_path / "run")
    room.train(alone(0), tmp_path / "solo")
    with pytest.raises(RecipeError, match="expected weights that are the model's exactly for a sweep"):
        room.train(make(), tmp_path / "new", weights=Weights(str(tmp_path / "solo"), strict=False))
    with pytest.raises(RecipeError, match="engine='func'"):
        recipe = make(engine="autograd")
        recipe.train_step(recipe.module())


def test_all_members_begin_with_weights_of_a_file(tmp_path):
    solo = room.train(alone(0), tmp_path / "solo").state
    begun = room.train(make(epochs=None, iters=1), tmp_path / "run", weights=tmp_path / "solo")
    assert begun.finished
    assert all(finding.agrees for finding in verify(tmp_path / "run", make(epochs=None, iters=1)))
    moved = begun.state["params", "0.weight"] - solo["params", "0.weight"]
    assert moved.abs().amax((1, 2)).tolist() == pytest.approx(LRS, rel=0.05)


def test_a_rule_gives_each_member_weights_of_its_own(tmp_path):
    recipe = make(init=[pr.initial.Normal("0.weight", std=0.1)])
    weights = recipe.init(recipe.module())["params", "0.weight"]
    assert weights.std() == pytest.approx(0.1, rel=0.3)
    assert not torch.equal(weights[0], weights[1])


def test_a_plateau_of_one_member_is_refused(tmp_path):
    """Its score would move the rates of all; it is said before anything is trained."""
    recipe = make(hooks=[pr.hooks.ReduceOnPlateau("accuracy[1]")])
    with pytest.raises(pr.StateError, match="got a population of 3: the score of one member would move"):
        room.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
