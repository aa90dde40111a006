"""Going on with other settings: an explicit act that says what changed, and what follows from it."""

from __future__ import annotations

import attrs
import pytest

import purerun as pr
from purerun import recipe as room
from purerun.checkpoint import find, read_manifest
from purerun.recipe import RecipeError, override
from tests.recipe.test_run import RECIPE, after, lines


def stopped(folder, at=4):
    """Stop a run at an iteration; epochs have three."""
    return room.train(RECIPE, folder, stop=after(at)).state


def gone_on(folder, *settings):
    """Go on with settings, as the command line does: what was said."""
    said = []
    asked = [setting.partition("=")[0] for setting in settings]
    outcome = room.train(override(RECIPE, settings), folder, resume="last", asked=asked, say=said.append)
    return outcome.state, said


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("epochs=4", "epochs: 3 -> 4: the run ends later or sooner"),
        (
            "train.batch_size=4",
            "8 -> 4: epoch 1 goes on at sample 8, none lost and none repeated, an epoch has 5 iterations; what counts",
        ),
        ("train.shuffle=false", "the rest of epoch 1 is read from other data or in another order"),
        ("seed=5", "seed: 0 -> 5: order, augmentation and dropout are others from here on"),
        ("optimizer.lr=0.2", "the learning rate of the next iteration is 0.15, and would have been 0.075"),
        ("schedule.0.period=6", "the learning rate of the next iteration is"),
        ("validate=2 epochs", "the weights stay the same unless a hook reads scores"),
        ("log=1 iters", "the lines of the log lie at other iterations from 4 on; the states do not change"),
        ("wrappers.1.decay=0.8", "wrappers.1.decay: 0.9 -> 0.8: in force from here on"),
        ("model.dropout=0.25", "model.dropout: 0.5 -> 0.25: in force from here on"),
    ],
)
def test_what_follows_from_a_change_is_said(tmp_path, setting, told):
    """In the words of the recipe, with numbers of this run."""
    stopped(tmp_path)
    _, said = gone_on(tmp_path, setting)

    assert any(told in line for line in said), said


def test_wrappers_that_are_new_begin_with_empty_slots(tmp_path):
    """Those that stay have theirs."""
    plain = attrs.evolve(RECIPE, wrappers=[pr.Accumulate(2)])
    room.train(plain, tmp_path, stop=after(3))
    said = []
    state = room.train(RECIPE, tmp_path, resume="last", asked=["wrappers"], say=said.append, stop=after(1)).state

    assert any("slots that are new start empty here" in line for line in said)
    assert {"accumulate", "ema"} < set(state.names())


def test_a_change_that_was_not_asked_for_is_refused(tmp_path):
    """With the settings that go on as before."""
    stopped(tmp_path)
    with pytest.raises(RecipeError, match=r"train\.batch_size: 8 -> 4; go on as before with --set train\.batch_size=8"):
        room.train(override(RECIPE, ["train.batch_size=4"]), tmp_path, resume="last")


@pytest.mark.parametrize(
    "setting",
    ["train.workers=2", "train.prefetch=4", "keep=2", "checkpoint=2 iters", "best=accuracy", "publish=params"],
)
def test_what_changes_no_bit_need_not_be_asked_for(tmp_path, setting):
    """It is told all the same; digest and log are those of the run in one go."""
    whole = room.train(RECIPE, tmp_path / "whole").state
    stopped(tmp_path / "run")
    said = []
    resumed = room.train(override(RECIPE, [setting]), tmp_path / "run", resume="last", say=said.append).state

    assert pr.digest(whole) == pr.digest(resumed)
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")
    assert any("no bit of the run depends on it" in line for line in said)
    assert [] == read_manifest(find(tmp_path / "run")).changes


def test_manifests_keep_what_was_changed_on_the_way(tmp_path):
    """The oldest first, with the iteration; so the recipe of every iteration is known."""
    stopped(tmp_path, at=2)
    room.train(override(RECIPE, ["optimizer.lr=0.2"]), tmp_path, resume="last", asked=["optimizer.lr"], stop=after(3))
    both = override(RECIPE, ["optimizer.lr=0.2", "train.batch_size=4"])
    room.train(both, tmp_path, resume="last", asked=["train.batch_size"])

    assert [
        {"iter": 2, "changes": {"optimizer.lr": [0.1, 0.2]}},
        {"iter": 5, "changes": {"train.batch_size": [8, 4]}},
    ] == read_manifest(find(tmp_path)).changes


def test_another_batch_size_loses_no_sample(tmp_path):
    """Each sample of the epoch in which it changed is consumed once."""
    from purerun.data import Loader

    loader = Loader(range(20), batch_size=8, shuffle=True)
    state = pr.testing.counted(epoch=1, cursor=8)
    first = next(iter(loader.seek(pr.testing.counted(epoch=1)))).tolist()
    rest = [index for batch in attrs.evolve(loader, batch_size=5).seek(state) for index in batch.tolist()]

    assert list(range(20)) == sorted(first + rest)


def test_rejected_checkpoints_are_said_loudly(tmp_path):
    """Which, why, and where the run goes on instead."""
    stopped(tmp_path, at=7)
    newest = find(tmp_path)
    raw = (newest / "state.safetensors").read_bytes()
    (newest / "state.safetensors").write_bytes(raw[:-3] + b"abc")
    _, said = gone_on(tmp_path)

    assert said[0].startswith(f"REJECTED {newest}/state.safetensors: expected")
    assert said[1] == f"going on from {newest.with_name('iter_00000006')}"
