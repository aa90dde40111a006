"""A whole run as one value: checked when it is written, and pure methods that make its parts."""

from __future__ import annotations

import attrs
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import purerun as pr
from purerun import recipe as room
from purerun.checkpoint import CheckpointError
from purerun.recipe import RecipeError


class Net(nn.Module):
    """Everything that makes determinism worth something."""

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


def make(**changes):
    given = {
        "model": pr.Module(Net, width=4),
        "loss": loss,
        "train": pr.Loader(DATA, batch_size=8, shuffle=True),
        "val": pr.Loader(DATA, batch_size=20),
        "optimizer": pr.optim.SGD(lr=0.1, momentum=0.9),
        "metrics": {"accuracy": pr.metrics.Accuracy()},
        "epochs": 3,
        "device": "cpu",
    }
    return pr.Recipe(**{**given, **changes})


def final(recipe):
    module = recipe.module()
    *_, state = recipe.train_loop(module)(recipe.init(module), recipe.train)
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "expected a recipe with either epochs or iters, got neither"),
        ({"iters": 5}, "expected a recipe with either epochs or iters, got epochs=3 and iters=5"),
        ({"metrics": {}}, "expected metrics to validate with, got none"),
        ({"device": "gpu"}, "expected a device such as 'cpu', 'cuda:0' or 'auto', got 'gpu'"),
        ({"validate": "often"}, 'expected something like "1 epoch"'),
        ({"seed": -1}, "'seed' must be >= 0"),
        ({"keep": 0}, "'keep' must be >= 1"),
        ({"model": nn.Linear(2, 1)}, "expected model such as pr.Module(Net, width=32), got Linear("),
        ({"optimizer": "SGD"}, "expected optimizer such as pr.optim.SGD(lr=0.1), got 'SGD'"),
        ({"loss": None}, "expected loss to be a function of model and batch, got None"),
        ({"schedule": ["cosine"]}, "expected schedule of values such as pr.schedule.Cosine(period=30), got 'cosine'"),
        ({"metrics": {"accuracy": 1}}, "expected metrics of values such as pr.metrics.Accuracy(), got 1 among them"),
        ({"train": 3}, "expected a Loader or an iterable of batches, got int"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes, message):
    """When it is written, not when it runs."""
    with pytest.raises((ValueError, TypeError)) as caught:
        make(**changes)

    assert str(caught.value).startswith(message)


def test_the_run_is_a_function_of_the_recipe():
    """Two runs of one recipe end in the same bits; with another seed, in others."""
    assert pr.digest(final(make())) == pr.digest(final(make()))
    assert pr.digest(final(make())) != pr.digest(final(make(seed=1)))


def test_the_first_weights_are_a_function_of_the_seed():
    """What was drawn before a run began does not matter."""
    first = make().module().state_dict()
    torch.rand(3)
    second = make().module().state_dict()

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_methods_change_nothing_but_what_they_return():
    """The recipe is the same value after a run, and so is the module."""
    recipe = make()
    module = recipe.module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    list(recipe.train_loop(module)(recipe.init(module), recipe.train))

    assert make() == recipe
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_the_step_has_the_schedule_and_the_wrappers():
    """In the order of the recipe, inner first."""
    recipe = make(
        schedule=[pr.schedule.Linear(0.5, end=4, by="iter")], wrappers=[pr.Accumulate(2), pr.EMA(0.9)], weights="ema"
    )
    state = final(recipe)

    assert {"accumulate", "ema"} <= set(state.names())
    assert 0.1 == pytest.approx(float(state["metrics", "lr"]))
    assert 0 <= float(state["scores", "accuracy"]) <= 1


def test_without_validation_data_there_are_no_scores():
    """And no metrics are needed."""
    assert () == final(make(val=None, metrics={}))["scores"].names()


def test_further_hooks_see_the_scores_of_the_validation():
    """They run after it."""
    plateau = pr.hooks.ReduceOnPlateau("accuracy", rule="greater", patience=0, threshold=2.0)
    state = final(make(hooks=[plateau]))

    assert float(state["hyper", "lr"]) < 0.1


def test_a_single_schedule_needs_no_list():
    """It is a list of one."""
    schedule = pr.schedule.Step(1)

    assert (schedule,) == make(schedule=schedule).schedule


def test_any_iterable_of_batches_is_taken_as_data():
    """With the weaker promise of `purerun.data.Foreign`."""
    batches = [{"x": torch.ones(4, 3), "y": torch.zeros(4, dtype=torch.int64)}] * 2

    assert 6 == int(final(make(train=batches))["iter"])


def test_auto_is_a_device_of_this_machine():
    """A recipe for this machine names its device."""
    recipe = make(device="auto").here()

    assert recipe.device != "auto"
    assert recipe == recipe.here()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator here")
def test_a_device_that_is_not_there_is_told():
    """With what torch says about it."""
    with pytest.raises(RecipeError, match="expected a device that this machine has, got 'cuda'"):
        make(device="cuda").module()


@pytest.mark.parametrize(("changes", "end"), [({"epochs": 2}, (2, 6)), ({"epochs": None, "iters": 4}, (1, 4))])
def test_ended_says_where_a_run_ends(changes, end):
    """At its last state and no earlier one."""
    recipe = make(**changes)
    module = recipe.module()
    states = list(recipe.train_loop(module)(recipe.init(module), recipe.train))

    assert [False] * (len(states) - 1) + [True] == [recipe.ended(state) for state in states]
    assert end == (int(states[-1]["epoch"]), int(states[-1]["iter"]))


def test_a_recipe_is_evolved_as_any_value():
    """Neither is changed by what happens to the other."""
    recipe = make()

    assert make(epochs=7) == attrs.evolve(recipe, epochs=7)
    assert make() == recipe


def test_rules_say_the_first_weights(tmp_path):
    """As functions of the seed; what no rule is about begins as the module makes it."""
    recipe = make(init=[pr.initial.Constant("layers.0.weight", 0.5)], wrappers=[pr.EMA(0.9)])
    module = recipe.module()
    state = recipe.init(module)

    assert {0.5} == {*state["params", "layers.0.weight"].flatten().tolist()}
    assert {0.5} == {*state["ema", "params", "layers.0.weight"].flatten().tolist()}
    assert torch.equal(module.layers[3].weight, state["params", "layers.3.weight"])
    assert pr.digest(final(recipe)) == pr.digest(room.train(recipe, tmp_path).state)


def test_rules_are_for_the_beginning_only(tmp_path):
    """A run goes on, and is judged, without the file that it began with."""
    weights, data = tmp_path / "first.safetensors", pr.Loader(DATA, batch_size=20)
    save_file(make(seed=5).module().state_dict(), weights)
    recipe = make(init=pr.checkpoint.Pretrained(weights), test=data)
    whole = room.train(recipe, tmp_path / "whole").state
    calls = iter(range(1, 9))
    room.train(recipe, tmp_path / "run", stop=lambda: next(calls) == 4)
    weights.unlink()
    state = room.train(recipe, tmp_path / "run", resume="last").state

    assert pr.digest(whole) == pr.digest(state)
    assert room.test(recipe, state).keys() == {"accuracy"}
    with pytest.raises(CheckpointError, match=r"first\.safetensors"):
        room.train(recipe, tmp_path / "new")


def dtype_of(model, batch):
    """Say whether the model computes in bfloat16."""
    return torch.full((len(batch["x"]),), float(model(batch["x"]).dtype == torch.bfloat16))


HALF = pr.Part(loss=loss, optimizer=pr.optim.SGD(lr=0.1), wrappers=[pr.Precision("bfloat16")])


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"wrappers": [pr.Clip(norm=1.0), pr.Precision("bfloat16")]}, 1.0),
        ({}, 0.0),
        ({"optimizer": None, "steps": {"a": HALF, "b": HALF}}, 1.0),
        ({"optimizer": None, "steps": {"a": HALF, "b": attrs.evolve(HALF, wrappers=[])}}, 0.0),
    ],
)
def test_a_model_is_judged_in_the_precision_that_it_is_trained_in(changes, share):
    """Of several steps, if they have the same one."""
    told = {"loss": None} if "steps" in changes else {}
    recipe = make(forward=dtype_of, metrics={"half": pr.metrics.Last(mean)}, **changes, **told)
    module = recipe.module()

    assert share == float(recipe.val_loop(module)(recipe.init(module), recipe.val)["half"])


def mean(output, batch):
    return output.mean()
