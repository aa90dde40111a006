"""Several steps in one recipe: what a script with the same steps does, and changes of them while a run goes on."""

from __future__ import annotations

import json

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun import recipe as room
from purerun.recipe import RecipeError, Weights, override
from purerun.testing import check_everything

DATA = pr.data.Tensors(torch.linspace(-1, 1, 60).view(20, 3))


class Pair(nn.ModuleDict):
    """Two layers, one upon the other."""

    def __init__(self) -> None:
        super().__init__({"low": nn.Linear(3, 4), "high": nn.Linear(4, 1)})


def small(models, batch):
    return models["high"](models["low"](batch[0]).tanh()).square().mean()


def large(models, batch):
    return -models["high"](models["low"](batch[0]).tanh()).mean()


def twice(steps, state, batch):
    """Call one of them twice."""
    return steps["high"](steps["low"](steps["low"](state, batch), batch), batch)


LOW = pr.Part(loss=small, optimizer=pr.optim.Adam(lr=0.01), params="low.*", wrappers=[pr.Accumulate(2)])
HIGH = pr.Part(
    loss=large,
    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9),
    params="high.*",
    schedule=[pr.schedule.Step(2, gamma=0.5)],
    wrappers=[pr.EMA(0.9)],
)


def make(**changes):
    given = {
        "model": pr.Module(Pair),
        "steps": {"low": LOW, "high": HIGH},
        "train": pr.Loader(DATA, batch_size=8, shuffle=True),
        "epochs": 3,
        "device": "cpu",
    }
    return pr.Recipe(**{**given, **changes})


def final(recipe):
    module = recipe.module()
    *_, state = recipe.train_loop(module)(recipe.init(module), recipe.train)
    return state


@pytest.mark.parametrize(("alternate", "calls"), [(None, 2), (twice, 3)])
def test_a_run_is_that_of_a_script(alternate, calls):
    """With steps made by hand, in a loop by hand."""
    recipe = make(alternate=alternate)
    module = recipe.module()
    low = pr.TrainStep(module, small, pr.optim.Adam(lr=0.01), name="low", params="low.*")
    high = pr.TrainStep(
        module, large, HIGH.optimizer, schedule=[pr.schedule.Step(2, gamma=0.5)], name="high", params="high.*"
    )
    low, high = pr.wrap(low, pr.Accumulate(2)), pr.wrap(high, pr.EMA(0.9))
    state = pr.init(0, low, high)
    for epoch in range(3):
        for batch, position in recipe.train.read(0, epoch, 0):
            for _ in range(calls - 1):
                state = low(state, batch)
            state = position.into(high(state, batch))
    state = high.finish(low.finish(state))

    assert 9 * calls == int(state["iter"])
    assert pr.digest(state) == pr.digest(final(recipe))


def by_batch(steps, state, batch):
    """Call one of them on a batch: `high` on every third."""
    return steps["high" if int(state["iter"]) % 3 == 2 else "low"](state, batch)


@pytest.mark.parametrize("stop", [4, 5, 8])
@pytest.mark.parametrize("every", ["1 iters", "5 iters"])
def test_a_log_tells_what_was_reported_of_its_own_batches(tmp_path, stop, every):
    """Not again what a step that had no turn has said before; so a run that goes on has the log of one in one go."""
    recipe = make(alternate=by_batch, log=every)
    whole = room.train(recipe, tmp_path / "whole").state
    left = iter(range(stop - 1))
    room.train(recipe, tmp_path / "run", stop=lambda: next(left, None) is None)
    resumed = room.train(recipe, tmp_path / "run", resume="last").state

    assert pr.digest(whole) == pr.digest(resumed)
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")
    if every == "1 iters":
        assert ["high" in " ".join(line) for line in lines(tmp_path / "run")] == [False, False, True] * 3


def lines(folder):
    """Read a log without what clocks say."""
    read = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read]


CLOCKS = ("time", "data_time", "eta", "timestamp", "memory")


def test_every_law_holds_where_steps_take_turns_by_batch():
    """A report is of one batch."""

    def again():
        recipe = make(epochs=2, alternate=by_batch)
        return recipe.train_loop(recipe.module()), recipe.train

    recipe = make(epochs=2, alternate=by_batch)
    module = recipe.module()
    check_everything(recipe.train_loop(module), recipe.init(module), recipe.train, again=again)


def test_every_law_holds():
    """On the loop of a recipe, with windows and averages."""

    def again():
        recipe = make(epochs=2)
        return recipe.train_loop(recipe.module()), recipe.train

    recipe = make(epochs=2)
    module = recipe.module()
    check_everything(recipe.train_loop(module), recipe.init(module), recipe.train, again=again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": small}, "expected either steps or loss, got both"),
        ({"wrappers": [pr.EMA(0.9)]}, "expected either steps or wrappers, got both"),
        ({"steps": {"low": small}}, "expected steps of values such as pr.Part(loss=..., optimizer=...)"),
        ({"steps": {"a.b": LOW}}, "expected steps with names such as 'critic', got 'a.b'"),
        ({"steps": {}}, "expected loss to be a function of model and batch, got None"),
        ({"alternate": 3}, "expected alternate to be a function of steps, state and batch, got 3"),
    ],
)
def test_steps_that_make_no_sense_are_refused(changes, message):
    """When the recipe is written."""
    with pytest.raises((ValueError, TypeError)) as caught:
        make(**changes)

    assert str(caught.value).startswith(message)


def test_an_alternation_needs_steps():
    """An ordinary recipe has nothing to alternate."""
    with pytest.raises(ValueError, match="expected steps="):
        pr.Recipe(model=pr.Module(Pair), loss=small, optimizer=pr.optim.SGD(), train=[0], epochs=1, alternate=twice)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (attrs.evolve(LOW, params="lower.*"), "step 'low': expected parameters to train that match 'lower.*'"),
        (attrs.evolve(LOW, wrappers=[pr.EMA(), pr.Compile()]), "step 'low': expected no Compile around EMA"),
        (attrs.evolve(LOW, wrappers=[pr.DataParallel(shards=2)]), "expected steps that take batches whole"),
    ],
)
def test_an_error_names_the_step(part, message):
    """When the step is made."""
    recipe = make(steps={"low": part, "high": HIGH})
    with pytest.raises(RecipeError) as caught:
        recipe.train_step(recipe.module())

    assert str(caught.value).startswith(message)


def test_a_value_of_a_step_changes_on_the_way(tmp_path):
    """It must be asked for; the new base value is written into that step's part of the state, and told."""
    room.train(make(epochs=1), tmp_path)
    settings = ["epochs=3", "steps.high.optimizer.lr=0.2"]
    changed, notes = override(make(epochs=1), settings), []
    with pytest.raises(RecipeError, match=r"steps\.high\.optimizer\.lr: 0\.1 -> 0\.2"):
        room.train(changed, tmp_path, resume="last", asked=["epochs"])
    state = room.train(
        changed, tmp_path, resume="last", asked=["epochs", "steps.high.optimizer.lr"], say=notes.append
    ).state

    assert (0.2, 0.01) == (float(state["hyper", "high", "lr"]), float(state["hyper", "low", "lr"]))
    assert any("is 0.01 (low), 0.2 (high), and would have been 0.01 (low), 0.1 (high)" in note for note in notes)


def test_another_optimizer_begins_with_slots_of_its_own(tmp_path):
    """The other step's slots stay, bit for bit, and so do base values that a hook has changed."""
    room.train(make(epochs=1), tmp_path)
    before = pr.load(tmp_path)
    rms = attrs.evolve(HIGH, optimizer=pr.optim.RMSprop(lr=0.1))
    recipe = make(epochs=1, steps={"low": LOW, "high": rms})
    module = recipe.module()
    start = room.start.again(recipe, recipe.train_step(module), tmp_path, asked=["steps.high.optimizer"])

    assert pr.digest(before["optim", "low"]) == pr.digest(start.state["optim", "low"])
    assert set(before["optim", "high"].keys()) != set(start.state["optim", "high"].keys())


def test_a_run_begins_with_the_average_of_one_step(tmp_path):
    """`ema/high` of a run: every slot begins at it, also the average of the new run."""
    room.train(make(epochs=1), tmp_path)
    source, recipe = pr.load(tmp_path), make()
    module = recipe.module()
    state = room.weights.anew(
        recipe, recipe.train_step(module), module, weights=Weights(tmp_path, entry="ema/high")
    ).state
    average = source["ema", "high", "params", "high.weight"]

    assert not torch.equal(average, source["params", "high.weight"])
    assert torch.equal(average, state["params", "high.weight"])
    assert torch.equal(average, state["ema", "high", "params", "high.weight"])
    assert torch.equal(source["params", "low.weight"], state["params", "low.weight"])
