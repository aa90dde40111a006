"""Where two runs part that should agree."""

from __future__ import annotations

import shutil

import pytest

import purerun as pr
from purerun.checkpoint import path_of
from purerun.history import HistoryError, bisect
from tests.history.runs import RAYS, RECIPE, WEIGHT, alter, ran


@pytest.mark.parametrize("iter", [1, 4, 5, 6, 10, 11, 12])
def test_the_first_iteration_and_leaf_are_found(run, iter):
    """A hook of one of them adds to a weight after that iteration."""
    other = ran(run.parent / "other", f"hooks.0.at={iter}")
    parting = bisect(run, other, RECIPE, RECIPE)

    assert (iter, None) == (parting.iter, parting.guilty)
    assert f"params/{WEIGHT}: 12 of 12 elements differ, by at most 0.25" in list(map(str, parting.leaves))
    assert max((at for at in (0, 5, 10, 12) if at < iter), default=0) == parting.since


def test_it_does_not_matter_where_they_were_saved(run):
    """Runs without a common checkpoint are compared from their seeds."""
    other = ran(run.parent / "other", "checkpoint.whens.0.count=7", "hooks.0.at=4", "epochs=3")
    parting = bisect(other, run, RECIPE, RECIPE)

    assert (0, 4) == (parting.since, parting.iter)


def test_runs_that_agree_are_said_to(run):
    """As far as both go, whatever they were saved at."""
    same = shutil.copytree(run, run.parent / "same")
    shorter = ran(run.parent / "shorter", "iters=8", "epochs=None", "checkpoint.whens.0.count=3")

    assert (None, 12) == (bisect(run, same, RECIPE, RECIPE).iter, bisect(run, same, RECIPE, RECIPE).until)
    assert [None, None] == [bisect(run, path, RECIPE, RECIPE).iter for path in (same, run)]
    assert (None, 8) == (bisect(shorter, run, RECIPE, RECIPE).iter, bisect(shorter, run, RECIPE, RECIPE).until)


def test_other_seeds_differ_before_the_first_iteration(run):
    """In the seed itself, and in the weights."""
    parting = bisect(run, ran(run.parent / "other", "seed=1"), RECIPE, RECIPE)

    assert 0 == parting.iter
    assert {"seed", f"params/{WEIGHT}"} <= {leaf.path for leaf in parting.leaves}


def test_a_change_on_the_way_is_where_they_part(run, changed):
    """The rate and the batches were changed at iteration 6: there the hyper-parameters differ."""
    parting = bisect(run, changed, RECIPE, RECIPE)

    assert (5, 6) == (parting.since, parting.iter)
    assert "hyper/lr: 1 of 1 elements differ, by at most 0.05" in list(map(str, parting.leaves))


@pytest.mark.parametrize("iter", [5, 10, 12])
@pytest.mark.parametrize("first", [False, True])
def test_an_altered_checkpoint_is_guilty(run, iter, first):
    """The recipes agree; one run's file does not follow from its own."""
    other = shutil.copytree(run, run.parent / "other")
    alter(other, iter)
    runs = (other, run) if first else (run, other)
    parting = bisect(*runs, RECIPE, RECIPE)

    assert (iter, other) == (parting.iter, parting.guilty)
    assert [f"params/{WEIGHT}: 1 of 12 elements differ, by at most 0.5"] == list(map(str, parting.leaves))
    assert {5: 0, 10: 5, 12: 10}[iter] == parting.since


def test_a_run_that_was_disturbed_is_guilty(run, monkeypatch):
    """What its recipe says leads elsewhere."""
    monkeypatch.setattr("tests.history.runs.RAYS", RAYS | {7})
    other = ran(run.parent / "other")
    monkeypatch.undo()
    parting = bisect(run, other, RECIPE, RECIPE)

    assert (5, 10, other) == (parting.since, parting.iter, parting.guilty)


def test_a_checkpoint_that_only_one_of_them_has_is_looked_at_too(run):
    """On the way to where both end."""
    other = ran(run.parent / "other", "checkpoint.whens.0.count=7", "iters=11", "epochs=None")
    alter(other, 7)
    parting = bisect(run, other, RECIPE, RECIPE)

    assert (7, other) == (parting.iter, parting.guilty)


def test_nowhere_is_no_run(run, tmp_path):
    """On either side."""
    for runs in ((run, tmp_path / "no"), (tmp_path / "no", run)):
        with pytest.raises(HistoryError, match="expected the directory of a run, found nothing"):
            bisect(*runs, RECIPE, RECIPE)


def test_each_run_is_read_and_left_as_it_is(run):
    """Nothing is written."""
    before = pr.digest(pr.load(path_of(run, 5)))
    bisect(run, ran(run.parent / "other", "hooks.0.at=7"), RECIPE, RECIPE)

    assert before == pr.digest(pr.load(path_of(run, 5)))
    assert ["checkpoints", "log.jsonl", "recipe.toml"] == sorted(each.name for each in run.iterdir())
