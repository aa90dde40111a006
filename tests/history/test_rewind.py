"""A run taken back, and gone on with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import purerun as pr
from purerun.checkpoint import CheckpointError, SaveError, last, names, path_of, read_manifest
from purerun.history import HistoryError, rewind, verify
from purerun.sinks import SinkError
from tests.history.runs import RECIPE, alter, digests, lines, ran


@pytest.mark.parametrize("iter", range(1, 13))
def test_a_run_goes_on_from_any_iteration_as_if_it_had_just_come_there(run, tmp_path, iter):
    """The state is exact, and so are the end and the log."""
    original = shutil.copytree(run, tmp_path / "original")
    manifest = rewind(run, RECIPE, iter)
    state = pr.load(run)
    ran(run, resume="last")

    assert digests()[iter] == manifest.digest == pr.digest(state)
    assert pr.digest(pr.load(original)) == pr.digest(pr.load(run))
    assert lines(original) == lines(run)


def test_later_checkpoints_stay_until_the_run_goes_on(run):
    """To look at them, and to go back to the future."""
    rewind(run, RECIPE, 7)
    log = lines(run)
    assert ("iter_00000005", "iter_00000007", "iter_00000010", "iter_00000012") == names(run)
    assert "iter_00000007" == last(run)
    assert [True] * 4 == [finding.agrees for finding in verify(run, RECIPE)]

    rewind(run, RECIPE, 12)
    assert ("iter_00000012", log) == (last(run), lines(run))
    assert not [entry.name for entry in run.iterdir() if entry.name.startswith(".")]


def test_the_new_checkpoint_says_where_it_comes_from(run):
    """Its parent is the one that it was computed from."""
    manifest = rewind(run, RECIPE, 7)
    first = rewind(run, RECIPE, 2)

    assert (read_manifest(path_of(run, 5)).digest, None) == (manifest.parent, first.parent)
    assert read_manifest(path_of(run, 5)).recipe == manifest.recipe


@pytest.mark.parametrize("iter", [3, 6, 8, 13])
def test_the_recipe_of_that_time_is_in_force_again(changed, tmp_path, iter):
    """Changes that came later are still to come; at the change itself too."""
    original = shutil.copytree(changed, tmp_path / "original")
    manifest = rewind(changed, RECIPE, iter)
    wishes = ("epochs=4", "train.batch_size=6", "optimizer.lr=0.05")
    if iter <= 6:
        ran(changed, "epochs=2", resume="last")
    ran(changed, *wishes, resume="last")

    assert ((2, 0) if iter <= 6 else (4, 1)) == (manifest.recipe["epochs"], len(manifest.changes))
    assert pr.digest(pr.load(original)) == pr.digest(pr.load(changed))
    assert lines(original) == lines(changed)


def test_what_was_pruned_is_computed_from_the_seed(run):
    """Far back, and the run goes on with as few checkpoints as before."""
    pruned = ran(run.parent / "pruned", "keep=1")
    manifest = rewind(pruned, RECIPE, 4)
    ran(pruned, "keep=1", resume="last")

    assert digests()[4] == manifest.digest
    assert (("iter_00000012",), lines(run)) == (names(pruned), lines(pruned))


def test_a_damaged_checkpoint_is_computed_again(run):
    """From the good one before it."""
    file = path_of(run, 10) / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")

    assert digests()[10] == rewind(run, RECIPE, 10).digest == pr.digest(pr.load(path_of(run, 10)))


def test_a_log_that_the_run_would_not_write_is_not_cut(run):
    """Where to cut it nobody can say; nothing is changed."""
    log = run / "log.jsonl"
    text = log.read_text()
    log.write_text(text.replace('"iter": 6', '"iter": 66', 1))
    with pytest.raises(HistoryError, match=r"log.jsonl: expected line \d+ to be what the run gives .*66"):
        rewind(run, RECIPE, 7)
    log.write_text("")
    with pytest.raises(HistoryError, match=r"log.jsonl: expected \d+ bytes of log, found 0"):
        rewind(run, RECIPE, 7)

    assert (("iter_00000005", "iter_00000010", "iter_00000012"), "iter_00000012") == (names(run), last(run))
    assert not (run / ".rewind").exists()


def test_going_back_from_an_altered_checkpoint_is_noticed_by_the_log(run):
    """A line of it is another than what would be computed."""
    alter(run, 5)

    with pytest.raises(HistoryError, match="expected line"):
        rewind(run, RECIPE, 9)


@pytest.mark.parametrize("iter", [-1, 0, 13])
def test_an_iteration_that_was_not_reached_is_refused(run, iter):
    """And nothing is touched."""
    with pytest.raises(HistoryError, match=f"expected an iteration from 1 to 12, .* got {iter}"):
        rewind(run, RECIPE, iter)

    assert "iter_00000012" == last(run)


def test_a_disk_that_takes_nothing_is_told_in_a_line(run, monkeypatch):
    """The scratch folder, the copy of the log; and a log that cannot be read."""
    (run / ".rewind").touch()  # a file, where a folder must be made
    with pytest.raises(SaveError, match=r"\.rewind: cannot be written: File exists"):
        rewind(run, RECIPE, 7)
    (run / ".rewind").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        with pytest.raises(SaveError, match=r"log\.jsonl: cannot be written: No space left on device"):
            rewind(run, RECIPE, 7)
    with monkeypatch.context() as patch:
        read = Path.read_bytes
        patch.setattr(Path, "read_bytes", lambda path: refuse() if path.name == "log.jsonl" else read(path))
        with pytest.raises(CheckpointError, match=r"log\.jsonl: cannot be read: No space left on device"):
            rewind(run, RECIPE, 7)

    assert digests()[7] == rewind(run, RECIPE, 7).digest


def refuse(*_):
    raise OSError(28, "No space left on device")


def test_a_run_that_another_process_trains_is_not_taken_back(run):
    """It would write over what this one writes."""
    script = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); print(flush=True); "
        "sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        other.stdout.readline()
        with pytest.raises(SinkError, match="another process trains a run there"):
            rewind(run, RECIPE, 7)
        other.stdin.close()

    assert "iter_00000012" == last(run)
    assert digests()[7] == rewind(run, RECIPE, 7).digest
