"""States computed again, from a checkpoint or from the seed."""

from __future__ import annotations

import shutil

import attrs
import pytest
import torch

import purerun as pr
from purerun.checkpoint import path_of
from purerun.history import HistoryError, fitted, in_force, replay, settings, stretches, timeline, verify
from purerun.history.origin import loaded
from purerun.recipe import RecipeError, override, resolved, train
from tests.history.runs import RECIPE, Net, alter, digests, ran


def test_from_the_seed_all_states_of_the_run_come_again(run):
    """Bit for bit, one an iteration, the first one included."""
    states = replay(RECIPE, stretches(None, timeline(run).tip))
    first = RECIPE.init(RECIPE.module())

    assert {0: pr.digest(first), **digests()} == {int(state["iter"]): pr.digest(state) for state in states}


def test_from_a_checkpoint_the_rest_of_them_comes(run):
    """It goes on in mid-epoch and in mid-window."""
    line = timeline(run)
    states = replay(RECIPE, stretches(line.points[0], line.tip, 11), pr.load(path_of(run, 5)))

    assert [(iter, digests()[iter]) for iter in range(5, 12)] == [(int(s["iter"]), pr.digest(s)) for s in states]


def test_changes_on_the_way_are_made_again(changed):
    """From the seed to each checkpoint after the change."""
    for point in timeline(changed).points:
        *_, state = replay(RECIPE, stretches(None, point))

        assert point.manifest.digest == pr.digest(state)


def test_what_was_in_force_is_found_by_undoing_later_changes(changed):
    """The state at the change itself is the one before it."""
    tip = timeline(changed).tip
    first, second = stretches(None, tip)
    (alone,) = stretches(None, tip, 6)

    assert ((6, 2, 8, 0.1), (14, 4, 6, 0.05)) == tuple(
        (way.stop, way.recipe["epochs"], way.recipe["train.batch_size"], way.recipe["optimizer.lr"])
        for way in (first, second)
    )
    assert {"epochs", "train.batch_size", "optimizer.lr"} == {change.path for change in second.changes}
    assert (6, first.recipe) == (alone.stop, alone.recipe)


def test_the_number_of_threads_and_the_settings_of_torch_stay(run):
    """Also between two states."""
    before = torch.get_num_threads()
    recipe = override(RECIPE, ["threads=2"])
    run = ran(run.parent / "two", "threads=2")
    states = replay(recipe, stretches(None, timeline(run).tip))
    next(states), next(states)

    assert before == torch.get_num_threads()
    states.close()


def test_the_recipe_of_a_run_is_made_of_that_of_its_file(run):
    """By settings, which are told."""
    other = ran(run.parent / "other", "optimizer.lr=0.02", "epochs=1", "model.width=6")
    data = in_force(timeline(other).tip.manifest)

    assert ("model.width=6", "optimizer.lr=0.02", "epochs=1") == settings(RECIPE, data)
    assert override(RECIPE, ["optimizer.lr=0.02", "epochs=1", "model.width=6"]) == fitted(RECIPE, data)


def test_what_changes_no_bit_may_differ(run):
    """Also where it cannot be set, as an item more in a list."""
    data = in_force(timeline(run).tip.manifest)
    recipe = attrs.evolve(RECIPE, checkpoint=["5 iters", "1 epoch"], keep=1)

    assert 0.1 == fitted(recipe, data).optimizer.lr


def test_what_cannot_be_set_is_listed(run):
    """Another class has no path."""
    data = in_force(timeline(run).tip.manifest)
    recipe = attrs.evolve(RECIPE, optimizer=pr.optim.Adam(lr=0.1), epochs=9)

    with pytest.raises(HistoryError, match=r"cannot be set: optimizer\.class: 'purerun\.optim\.Adam' -> .*--recipe$"):
        fitted(recipe, data)


def test_another_program_is_refused(run):
    """The recipe says the same, the model is another: what differs is shown."""

    def wider(width: int = 4, dropout: float = 0.5):
        net = Net(width, dropout)
        net.layers[2] = torch.nn.Dropout1d(dropout)
        return net

    wider.__module__, wider.__qualname__ = Net.__module__, Net.__qualname__
    recipe = attrs.evolve(RECIPE, model=pr.Module(wider, width=4))
    line = timeline(run)
    assert resolved(recipe) == resolved(RECIPE)

    with pytest.raises(RecipeError, match="the state of iteration 5 was made by another step, with the same recipe"):
        list(replay(recipe, stretches(line.points[0], line.tip), pr.load(path_of(run, 5))))


def test_a_checkpoint_of_a_script_cannot_be_computed_again(tmp_path):
    """It holds no recipe."""
    pr.save(pr.testing.counted(iter=3), path_of(tmp_path, 3))

    with pytest.raises(HistoryError, match="the checkpoint of its iteration 3 holds no recipe"):
        stretches(None, timeline(tmp_path).tip)


def test_checkpoints_of_two_histories_do_not_follow_from_each_other(run, changed):
    """The earlier one knows of a change of which the later one does not."""
    later = timeline(changed).points[2]

    with pytest.raises(HistoryError, match="iteration 12 does not come from iteration 10"):
        stretches(later, timeline(run).tip)


def test_a_run_that_began_with_other_weights_begins_with_them_again(run):
    """As long as they are what they were."""
    place = run.parent / "tuned"
    train(RECIPE, place, weights=run)
    found = [(each.since, each.until, each.agrees) for each in verify(place, RECIPE)]
    alter(run, 12)
    (changed, *rest) = verify(place, RECIPE)
    shutil.rmtree(run)
    (gone, *_) = verify(place, RECIPE)

    assert [(0, 5, True), (5, 10, True), (10, 12, True)] == found
    assert f"the run began with the weights of {run}, which are others now" in changed.why
    assert f"the run began with the weights of {run}, which cannot be read: " in gone.why
    assert [(False, "")] * 2 == [(each.checked, each.leaf) for each in (changed, gone)]
    assert [True, True] == [each.agrees for each in rest]


def test_the_weights_are_found_from_another_folder(run, monkeypatch, tmp_path):
    """Also when they were named from the folder of that time."""
    monkeypatch.chdir(run.parent)
    train(RECIPE, "tuned", weights=run.name)
    monkeypatch.chdir("/")

    assert [True] * 3 == [finding.agrees for finding in verify(tmp_path / "tuned", RECIPE)]


def test_without_the_weights_what_follows_is_still_checked(run):
    """Its first stretch is not, and its last checkpoint was altered."""
    place = run.parent / "tuned"
    train(RECIPE, place, weights=run)
    shutil.rmtree(run)
    alter(place, 12)

    assert [(False, False), (True, True), (True, False)] == [(f.checked, f.agrees) for f in verify(place, RECIPE)]
    assert [(False, False)] == [(f.checked, f.agrees) for f in verify(place, RECIPE, samples=3)][:1]


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({"path": "s3://bucket/run"}, "the weights of s3://bucket/run, which are not on this machine"),
        ({"path": "nowhere", "pickle": True}, "the weights of nowhere, which cannot be read: .*pickle"),
        ({}, "the weights of None, which cannot be read"),
    ],
)
def test_a_hostile_manifest_calls_up_nobody(origin, message):
    """What it says of the first weights is only read, and from this machine."""
    module = RECIPE.module()

    with pytest.raises(HistoryError, match=message):
        loaded(RECIPE, RECIPE.train_step(module), module, origin)
