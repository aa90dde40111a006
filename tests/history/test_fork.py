"""Runs that branch off from others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import purerun as pr
from purerun.checkpoint import SaveError, last, names, path_of, read_manifest
from purerun.history import HistoryError, fork, verify
from purerun.recipe import RecipeError, override, text
from tests.history.runs import RECIPE, digests, lines, ran


@pytest.mark.parametrize("iter", [2, 5, 7, 12])
def test_a_fork_without_changes_is_the_run_again(run, tmp_path, iter):
    """Its end, and its log from the first line on."""
    place = tmp_path / "fork"
    manifest = fork(run, RECIPE, iter, place)
    begun = lines(place)
    ran(place, resume="last")

    assert (digests()[iter], digests()[iter]) == (manifest.digest, manifest.parent)
    assert (lines(run)[: len(begun)], True) == (begun, all(line["iter"] <= iter for line in begun))
    assert pr.digest(pr.load(run)) == pr.digest(pr.load(place))
    assert lines(run) == lines(place) or iter == 12  # the partial line of an end is written when a run comes to it


@pytest.mark.parametrize("iter", [5, 7])
def test_a_fork_is_what_a_resume_with_the_same_changes_would_be(run, tmp_path, iter):
    """The changes are in its first state; afterwards nothing differs from what was asked for."""
    wishes = ("optimizer.lr=0.3", "train.batch_size=5", "epochs=5")
    place, twin = tmp_path / "fork", tmp_path / "twin"
    manifest = fork(run, RECIPE, iter, place, wishes)
    ran(place, resume="last", recipe=override(RECIPE, wishes))

    fork(run, RECIPE, iter, twin)
    ran(twin, *wishes, resume="last")

    assert 0.3 == float(pr.load(path_of(place, iter))["hyper", "lr"])
    assert digests()[iter] == manifest.parent != manifest.digest
    assert {
        "iter": iter,
        "changes": {"train.batch_size": [8, 5], "optimizer.lr": [0.1, 0.3], "epochs": [4, 5]},
    } in manifest.changes
    assert pr.digest(pr.load(twin)) == pr.digest(pr.load(place))
    assert lines(twin) == lines(place)
    assert text(override(RECIPE, wishes)) == (place / "recipe.toml").read_text()


def test_a_fork_is_as_auditable_as_any_run(run, tmp_path):
    """Also its first state, from the seed of the other one."""
    place = tmp_path / "fork"
    fork(run, RECIPE, 7, place, ["optimizer.lr=0.3"])
    ran(place, "optimizer.lr=0.3", resume="last")

    assert [(0, 7, True), (7, 10, True), (10, 12, True)] == [
        (f.since, f.until, f.agrees) for f in verify(place, RECIPE)
    ]


def test_a_fork_of_a_fork_remembers_both(changed, tmp_path):
    """And a run that was changed before."""
    fork(changed, RECIPE, 8, tmp_path / "a", ["optimizer.lr=0.3"])
    manifest = fork(tmp_path / "a", RECIPE, 8, tmp_path / "b", ["optimizer.momentum=0.5"])

    assert [6, 8, 8] == [entry["iter"] for entry in manifest.changes]
    assert {"optimizer.momentum": [0.9, 0.5]} == manifest.changes[-1]["changes"]
    assert [True] == [finding.agrees for finding in verify(tmp_path / "b", RECIPE)]


def test_the_other_run_stays_as_it_is(run, tmp_path):
    """Not a file more or less."""
    before = sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    fork(run, RECIPE, 7, tmp_path / "fork", ["optimizer.lr=0.3"])

    assert before == sorted((path, path.read_bytes()) for path in run.rglob("*") if path.is_file())
    assert (("iter_00000007",), "iter_00000007") == (names(tmp_path / "fork"), last(tmp_path / "fork"))
    assert ["checkpoints", "log.jsonl", "recipe.toml"] == sorted(each.name for each in (tmp_path / "fork").iterdir())


def test_a_place_that_holds_a_run_is_refused(run):
    """Even the run itself."""
    with pytest.raises(HistoryError, match="holds a run; choose another place"):
        fork(run, RECIPE, 5, run)


def test_a_change_that_is_not_possible_is_refused(run, tmp_path):
    """Before anything is written."""
    with pytest.raises(RecipeError, match="SGD has no 'momentun'"):
        fork(run, RECIPE, 5, tmp_path / "fork", ["optimizer.momentun=1"])
    with pytest.raises(HistoryError, match="expected an iteration from 1 to 12"):
        fork(run, RECIPE, 99, tmp_path / "fork")

    assert not (tmp_path / "fork").exists()


def test_the_first_checkpoint_knows_the_libraries_and_the_program(run, tmp_path):
    """As any other does."""
    old, new = read_manifest(path_of(run, 5)), fork(run, RECIPE, 5, tmp_path / "fork")

    assert (old.program, old.fingerprint, old.versions) == (new.program, new.fingerprint, new.versions)


@pytest.mark.parametrize("where", ["checkpoints/iter_00000005", "checkpoints/iter_00000005/a/b", "checkpoints/c"])
def test_a_place_that_is_removed_with_old_checkpoints_is_refused(run, where):
    """Nothing is written there."""
    before = sorted(run.rglob("*"))
    with pytest.raises(
        HistoryError, match=r"lies (in the checkpoint|among the checkpoints of) .*; choose another place"
    ):
        fork(run, RECIPE, 5, run / where)

    assert before == sorted(run.rglob("*"))


def test_a_checkpoint_that_is_no_run_s_is_no_place_either(run, tmp_path):
    """By whatever name it is called."""
    pr.save(pr.testing.counted(iter=3), tmp_path / "alone")
    (tmp_path / "link").symlink_to(tmp_path / "alone")
    with pytest.raises(HistoryError, match=r"link lies in the checkpoint .*alone; choose another place"):
        fork(run, RECIPE, 5, tmp_path / "link")


def fill_disk(patch, changes):
    """Let the disk take so many changes of a name, and then none."""
    left, replace = iter(range(changes)), Path.replace

    def moved(path, target):
        if next(left, None) is None:
            raise OSError(28, "No space left on device", str(target))
        return replace(path, target)

    patch.setattr(Path, "replace", moved)


@pytest.mark.parametrize("iter", [5, 7])
@pytest.mark.parametrize("place", ["new/a/b", "old"])
def test_a_fork_that_fails_leaves_nothing_behind(run, tmp_path, place, iter):
    """At whichever change of the disk; so it can be tried again."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes").touch()
    before, failures = sorted(tmp_path.rglob("*")), 0
    for changes in range(99):
        with pytest.MonkeyPatch.context() as patch:
            fill_disk(patch, changes)
            try:
                fork(run, RECIPE, iter, tmp_path / place)
            except SaveError:
                failures += 1
                assert before == sorted(tmp_path.rglob("*"))
            else:
                break
    ran(tmp_path / place, resume="last")

    assert failures >= 6
    assert digests()[12] == pr.digest(pr.load(tmp_path / place))


def test_a_fork_that_was_killed_is_not_in_the_way(run, tmp_path):
    """Neither while its files were made, nor while they were brought to their place."""
    place, ready = tmp_path / "fork", tmp_path / "ready"
    fork(run, RECIPE, 5, ready)
    for done in (["recipe.toml", "log.jsonl"], ["recipe.toml"], []):
        shutil.copytree(ready, place / ".fork")
        for name in done:
            (place / ".fork" / name).rename(place / name)
        fork(run, RECIPE, 5, place)

        assert ["checkpoints", "log.jsonl", "recipe.toml"] == sorted(each.name for each in place.iterdir())
        shutil.rmtree(place)
