"""The packaged runner: a run directory, stopped anywhere and gone on with, gives what one go gives."""

from __future__ import annotations

import json
import shutil
from itertools import count

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun import recipe as room
from purerun.checkpoint import names, path_of
from purerun.recipe import RecipeError, override, resolved
from purerun.sinks import SinkError

CLOCKS = ("time", "data_time", "eta", "timestamp", "memory")


class Net(nn.Module):
    def __init__(self, width: int = 4, dropout: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, 2)
        )

    def forward(self, x):
        return self.layers(x)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


DATA = pr.data.Tensors(x=torch.linspace(-1, 1, 60).view(20, 3), y=torch.arange(20) % 2)

RECIPE = pr.Recipe(
    model=pr.Module(Net, width=4),
    loss=loss,
    train=pr.Loader(DATA, batch_size=8, shuffle=True),
    val=pr.Loader(DATA, batch_size=20),
    test=pr.Loader(DATA, batch_size=20),
    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9),
    schedule=[pr.schedule.Cosine(period=3)],
    wrappers=[pr.Accumulate(2), pr.EMA(0.9)],
    metrics={"accuracy": pr.metrics.Accuracy()},
    epochs=3,
    log="2 iters",
    device="cpu",
)


def after(iterations):
    """Say stop when so many iterations are done."""
    calls = count(1)
    return lambda: next(calls) >= iterations


def lines(directory):
    """Read a log without what clocks say."""
    read = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one go: its directory and its digest."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, pr.digest(room.train(RECIPE, directory).state)


def test_a_run_leaves_its_recipe_its_log_and_its_checkpoints(whole):
    """Under the names of the contract."""
    directory, digest = whole

    assert {"recipe.toml", "log.jsonl", "checkpoints"} == {path.name for path in directory.iterdir()}
    assert room.text(RECIPE) == (directory / "recipe.toml").read_text()
    assert ("iter_00000003", "iter_00000006", "iter_00000009") == names(directory)
    assert digest == pr.digest(pr.load(directory))
    assert resolved(RECIPE) == pr.checkpoint.read_manifest(path_of(directory, 9)).recipe


def test_a_run_computes_with_the_threads_of_its_recipe(tmp_path):
    """And leaves the process with as many as it had."""
    seen = []

    def watching(model, batch):
        seen.append(torch.get_num_threads())
        return loss(model, batch)

    before = torch.get_num_threads()
    room.train(attrs.evolve(RECIPE, loss=watching, threads=before + 1, epochs=1), tmp_path)

    assert {before + 1} == set(seen)
    assert before == torch.get_num_threads()


def test_validation_does_not_change_what_is_trained(whole):
    """A run without it has the same weights."""
    module = RECIPE.module()
    *_, state = attrs.evolve(RECIPE, val=None).train_loop(module)(RECIPE.init(module), RECIPE.train)

    assert {"scores/accuracy", "scores/iter"} == {leaf.path for leaf in pr.diff(state, pr.load(whole[0]))} - {
        "fingerprint"
    }


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_run_stopped_anywhere_and_resumed_is_the_run_in_one_go(whole, tmp_path, stop):
    """The same digest, and the same log but for what clocks say."""
    first = room.train(RECIPE, tmp_path, stop=after(stop))
    second = room.train(RECIPE, tmp_path, resume="last")

    assert (False, True) == (first.finished, second.finished)
    assert (False, True) == (first.resumed, second.resumed)
    assert stop == int(first.state["iter"])
    assert whole[1] == pr.digest(second.state)
    assert lines(whole[0]) == lines(tmp_path)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 4), max_size=8))
def test_a_run_stopped_many_times_is_the_run_in_one_go(whole, tmp_path_factory, goes):
    """However short each go is."""
    directory = tmp_path_factory.mktemp("run")
    for iterations in goes:
        room.train(RECIPE, directory, resume="last", stop=after(iterations))
    state = room.train(RECIPE, directory, resume="last").state

    assert whole[1] == pr.digest(state)
    assert lines(whole[0]) == lines(directory)


def test_a_stop_at_the_last_iteration_finishes(tmp_path):
    """There is nothing left to go on with."""
    assert room.train(RECIPE, tmp_path, stop=after(9)).finished


def test_a_finished_run_resumed_is_left_as_it_is(whole):
    """Nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}
    outcome = room.train(RECIPE, whole[0], resume="last")

    assert outcome.finished
    assert whole[1] == pr.digest(outcome.state)
    assert before == {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}


def test_a_run_can_go_on_from_an_earlier_checkpoint(whole, tmp_path):
    """What came after it is replaced by the same."""
    room.train(RECIPE, tmp_path)
    state = room.train(RECIPE, tmp_path, resume=path_of(tmp_path, 3)).state

    assert whole[1] == pr.digest(state)
    assert lines(whole[0]) == lines(tmp_path)


def test_a_run_without_a_checkpoint_starts_from_the_beginning(whole, tmp_path):
    """As the first go of a job that is restarted until it is done; whoever started it is told."""
    notes = []
    outcome = room.train(RECIPE, tmp_path, resume="last", say=notes.append)

    assert whole[1] == pr.digest(outcome.state)
    assert [f"{tmp_path} has no checkpoint yet; starting from the beginning"] == notes


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path):
    """The newest good one is gone on from."""
    room.train(RECIPE, tmp_path, stop=after(7))
    file = path_of(tmp_path, 7) / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    outcome = room.train(RECIPE, tmp_path, resume="last")

    assert whole[1] == pr.digest(outcome.state)


def test_a_directory_that_holds_a_run_is_not_written_into(whole):
    """Unless one says what to do with it."""
    with pytest.raises(RecipeError, match=r"holds a run; go on with it \(--resume\), replace it \(--overwrite\)"):
        room.train(RECIPE, whole[0])


def test_a_run_can_be_overwritten(whole, tmp_path):
    """Nothing of the old one is left."""
    longer = attrs.evolve(RECIPE, epochs=4)
    room.train(longer, tmp_path)
    room.train(RECIPE, tmp_path, overwrite=True)

    assert lines(whole[0]) == lines(tmp_path)
    assert names(whole[0]) == names(tmp_path)


@pytest.mark.parametrize("wrong", [{"best": ["accurcy"]}, {"publish": "swa"}])
def test_a_run_that_is_refused_destroys_nothing(tmp_path, wrong):
    """Though it may replace what is there: what it asks for does not exist."""
    room.train(RECIPE, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SinkError, match=r"expected (best|publish) to be among"):
        room.train(attrs.evolve(RECIPE, **wrong), tmp_path, overwrite=True)

    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_going_on_with_another_recipe_is_refused(whole, tmp_path):
    """Each difference is named, and how to go on as before."""
    room.train(RECIPE, tmp_path, stop=after(2))
    other = override(RECIPE, ["optimizer.lr=0.05", "train.batch_size=4"])
    with pytest.raises(RecipeError) as caught:
        room.train(other, tmp_path, resume="last")

    assert "train.batch_size: 8 -> 4, optimizer.lr: 0.1 -> 0.05; go on as before with --set train.batch_size=8 " in str(
        caught.value
    )


def test_no_setting_is_named_where_none_can_help(tmp_path):
    """Another optimizer is no value that can be set."""
    room.train(RECIPE, tmp_path, stop=after(2))
    other = attrs.evolve(RECIPE, optimizer=pr.optim.AdamW(lr=0.1))
    with pytest.raises(RecipeError, match=r"purerun\.optim\.AdamW.*; go on with the recipe as it was"):
        room.train(other, tmp_path, resume="last")


def test_another_program_behind_the_same_recipe_is_refused(tmp_path, monkeypatch):
    """A class whose code makes other layers now has the same name and arguments."""
    room.train(RECIPE, tmp_path, stop=after(2))
    made = Net.__init__

    def otherwise(self, width: int = 4, dropout: float = 0.5):
        made(self, width, dropout)
        self.layers[2] = nn.AlphaDropout(dropout)

    monkeypatch.setattr(Net, "__init__", otherwise)
    with pytest.raises(RecipeError, match="was made by another step, with the same recipe: "):
        room.train(RECIPE, tmp_path, resume="last")


def test_what_was_asked_to_change_changes(tmp_path):
    """The learning rate is a leaf of the state: the new one is written into it, and nothing else."""
    stopped = room.train(RECIPE, tmp_path, stop=after(2)).state
    other = override(RECIPE, ["optimizer.lr=0.05"])
    seen = []
    outcome = room.train(other, tmp_path, resume="last", asked=["optimizer.lr"], stop=lambda: not seen.append(1))

    assert 0.1 == float(stopped["hyper", "lr"])
    assert 0.05 == float(outcome.state["hyper", "lr"])
    assert 0.9 == float(outcome.state["hyper", "momentum"])
    assert 3 == int(outcome.state["iter"])


def test_what_was_asked_to_change_in_an_optimizer_of_torch_changes(tmp_path):
    """Its values have names of their own in the state: `betas.0` is `beta1`."""
    recipe = attrs.evolve(RECIPE, optimizer=pr.optim.Torch(torch.optim.NAdam, lr=0.1, betas=(0.9, 0.99)))
    room.train(recipe, tmp_path, stop=after(2))
    other = override(recipe, ["optimizer.options.lr=0.05", "optimizer.options.betas.0=0.8"])
    asked = ["optimizer.options.lr", "optimizer.options.betas"]
    state = room.train(other, tmp_path, resume="last", asked=asked).state

    assert (0.05, 0.8, 0.99) == tuple(float(state["hyper", name]) for name in ("lr", "beta1", "beta2"))


def test_what_is_asked_for_again_changes_nothing(whole, tmp_path):
    """A run with a setting is gone on with by the same words; the state keeps what a hook made of the value."""
    recipe = override(RECIPE, ["optimizer.lr=0.1"])
    room.train(recipe, tmp_path, stop=after(2))

    assert whole[1] == pr.digest(room.train(recipe, tmp_path, resume="last", asked=["optimizer.lr"]).state)


def test_a_longer_run_goes_on_where_the_shorter_one_ended(whole, tmp_path):
    """What a schedule or the loop needs from the start is in the counters."""
    longer = attrs.evolve(RECIPE, epochs=4)
    room.train(attrs.evolve(RECIPE, epochs=2), tmp_path / "a")
    with pytest.raises(RecipeError, match="epochs: 2 -> 4"):
        room.train(longer, tmp_path / "a", resume="last")

    outcome = room.train(longer, tmp_path / "a", resume="last", asked=["epochs"])
    assert (4, 12) == (int(outcome.state["epoch"]), int(outcome.state["iter"]))


def test_a_new_slot_that_was_asked_for_starts_fresh(tmp_path):
    """Momentum needs a slot that plain descent has not."""
    plain = override(RECIPE, ["optimizer.momentum=0"])
    room.train(plain, tmp_path, stop=after(2))
    outcome = room.train(RECIPE, tmp_path, resume="last", asked=["optimizer.momentum"])

    assert "momentum_buffer" in outcome.state["optim"].names()
    assert 0.9 == float(outcome.state["hyper", "momentum"])


def test_other_shapes_are_refused_even_if_asked_for(tmp_path):
    """Weights of another width cannot be gone on with."""
    room.train(RECIPE, tmp_path, stop=after(2))
    with pytest.raises(pr.StateError, match=r"expected a state with `\w+/layers"):
        room.train(override(RECIPE, ["model.width=8"]), tmp_path, resume="last", asked=["model.width"])


def test_weights_of_another_run_can_be_begun_with(whole, tmp_path):
    """Counters and slots begin anew."""
    outcome = room.train(RECIPE, tmp_path, weights=whole[0], stop=after(1))
    fresh = room.train(RECIPE, tmp_path / "fresh", stop=after(1)).state

    assert 1 == int(outcome.state["iter"])
    assert pr.digest(fresh) != pr.digest(outcome.state)
    assert not torch.equal(fresh["params", "layers.0.weight"], pr.load(whole[0])["params", "layers.0.weight"])


def test_weights_of_another_model_are_refused(whole, tmp_path):
    """The first that does not fit is named."""
    with pytest.raises(pr.StateError, match=r"`layers\.0\.bias`: expected float32 \[8\], found float32 \[4\]"):
        room.train(override(RECIPE, ["model.width=8"]), tmp_path, weights=whole[0])


def test_the_test_judges_the_state_it_is_given(whole):
    """The scores of the last validation are those of a test on the same data."""
    state = pr.load(whole[0])

    assert float(state["scores", "accuracy"]) == float(room.test(RECIPE, state)["accuracy"])


def test_a_test_needs_test_data(whole):
    """It is not guessed which other data might do."""
    with pytest.raises(RecipeError, match="expected a recipe with test data, got test=None"):
        room.test(attrs.evolve(RECIPE, test=None), pr.load(whole[0]))


def test_a_run_that_is_over_earlier_loses_nothing(whole, tmp_path):
    """Asked to go on from a checkpoint at which a shorter run is over, nothing that comes after it is removed."""
    shutil.copytree(whole[0], tmp_path / "run")
    short = attrs.evolve(RECIPE, epochs=1)
    outcome = room.train(short, tmp_path / "run", resume=path_of(tmp_path / "run", 3), asked=["epochs"])

    assert 3 == int(outcome.state["iter"])
    assert names(whole[0]) == names(tmp_path / "run")
    assert lines(whole[0]) == lines(tmp_path / "run")


@pytest.mark.parametrize("place", ["s3://bucket/run", "memory://run", "file:///run"])
def test_a_run_is_not_written_to_a_url(place, tmp_path, monkeypatch):
    """Nor into a local folder of that name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="expected a local directory"):
        room.train(RECIPE, place)

    assert [] == list(tmp_path.iterdir())


def test_a_run_that_is_over_is_told_as_it_is(tmp_path):
    """What is asked to change is not in force, and so not in the state that is given back."""
    ended = room.train(RECIPE, tmp_path).state
    again = room.train(attrs.evolve(RECIPE, seed=9), tmp_path, resume="last", asked=["seed"])

    assert again.finished
    assert pr.digest(ended) == pr.digest(again.state)
