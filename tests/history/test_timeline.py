"""The checkpoints of a run as one line in time."""

from __future__ import annotations

import pytest

import purerun as pr
from purerun.checkpoint import path_of, point
from purerun.history import HistoryError, timeline
from tests.history.runs import alter


def test_good_checkpoints_are_listed_in_the_order_of_their_iterations(run):
    """With what their manifests say."""
    line = timeline(run)

    assert [5, 10, 12] == [each.iter for each in line.points]
    assert [path_of(run, 5), path_of(run, 10), path_of(run, 12)] == [each.path for each in line.points]
    assert ({}, 12, 12) == (line.damaged, line.tip.iter, line.stand.iter)


def test_a_checkpoint_of_the_wrong_size_is_damaged(run):
    """The others are as good as they were."""
    with (path_of(run, 10) / "state.safetensors").open("ab") as file:
        file.write(b"!")
    line = timeline(run)

    assert [5, 12] == [each.iter for each in line.points]
    assert [10] == list(line.damaged)
    assert "expected " in line.damaged[10]


def test_a_changed_byte_is_found_by_whoever_reads_all_of_them(run):
    """Sizes do not tell."""
    file = path_of(run, 10) / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")

    assert [[5, 10, 12], [5, 12]] == [
        [each.iter for each in line.points] for line in (timeline(run), timeline(run, believe=pr.load))
    ]
    assert 5 == timeline(run).before(11)[0].iter


def test_a_renamed_checkpoint_is_damaged(run):
    """It is not the state of the iteration that it has the name of."""
    path_of(run, 10).rename(path_of(run, 11))

    assert {11: f"{path_of(run, 11)}: its manifest is of iteration 10; it was renamed or changed"} == timeline(
        run
    ).damaged


def test_the_run_stands_where_last_points(run):
    """Or at the last good one before."""
    point(run, "iter_00000010")
    before = timeline(run).stand.iter
    (path_of(run, 10) / "manifest.json").unlink()

    assert (10, 5) == (before, timeline(run).stand.iter)


def test_an_iteration_that_was_not_reached_is_refused(run):
    """Zero is the seed, and no iteration."""
    for iter in (0, 13):
        with pytest.raises(HistoryError, match=f"expected an iteration from 1 to 12, .* got {iter}$"):
            timeline(run).after(iter)


def test_what_is_no_run_is_refused(run, tmp_path):
    """Each in its own words."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(HistoryError, match="expected the directory of a run, found nothing"):
        timeline(tmp_path / "nowhere")
    with pytest.raises(HistoryError, match="found one without checkpoints"):
        timeline(tmp_path / "empty")
    with pytest.raises(HistoryError, match=r"found a checkpoint; give its run"):
        timeline(path_of(run, 5))


def test_a_run_of_damaged_checkpoints_says_why(run):
    """There is nothing to begin with."""
    for iter in (5, 10, 12):
        (path_of(run, iter) / "manifest.json").unlink()

    with pytest.raises(HistoryError, match=r"expected a checkpoint that can be believed: .*manifest\.json"):
        _ = timeline(run).tip


def test_a_signed_change_is_no_damage(run):
    """Only computing the run again finds it."""
    alter(run, 10)

    assert {} == timeline(run, believe=pr.load).damaged
