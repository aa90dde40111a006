"""The directory of a run: what is in it is not lost, and what goes wrong there is said before anything is written."""

from __future__ import annotations

import errno
import json
import shutil
from itertools import count

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun import recipe as room
from purerun.checkpoint import SaveError, names, path_of
from purerun.recipe import RecipeError, holds_run
from purerun.sinks import SinkError

RECIPE = pr.Recipe(
    model=pr.Module(nn.Linear, in_features=2, out_features=1),
    loss=lambda model, batch: model(batch[0]).square().mean(),
    train=pr.Loader(pr.data.Tensors(torch.linspace(-1, 1, 16).view(8, 2)), batch_size=2),
    optimizer=pr.optim.SGD(lr=0.1),
    epochs=3,
    log="2 iters",
    device="cpu",
)


def after(iterations):
    """Say stop when so many iterations are done."""
    calls = count(1)
    return lambda: next(calls) >= iterations


def contents(directory):
    """All files, as they are."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def iters(directory):
    """The iterations of the lines of a log."""
    return [line["iter"] for line in map(json.loads, (directory / "log.jsonl").read_text().splitlines())]


@pytest.fixture
def old(tmp_path):
    """A run of 12 iterations with checkpoints at 4, 8 and 12."""
    room.train(RECIPE, tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture
def killed(old, tmp_path):
    """The directory of another run that went on from there, and was killed before its first checkpoint."""
    new = tmp_path / "new"
    room.train(RECIPE, new, resume=path_of(old, 4), stop=after(3))
    shutil.rmtree(new / "checkpoints")
    (new / "log.jsonl").write_bytes((new / "log.jsonl").read_bytes().splitlines(keepends=True)[0] + b'{"mode": ')
    return new


def test_a_run_goes_on_in_another_directory(old, tmp_path):
    """Its log begins there, without a warning; the other directory stays as it is."""
    before = contents(old)
    state = room.train(RECIPE, tmp_path / "new", resume=path_of(old, 4)).state

    assert pr.digest(pr.load(old)) == pr.digest(state)
    assert [6, 8, 10, 12] == iters(tmp_path / "new")
    assert before == contents(old)


def test_going_on_there_a_second_time_loses_no_line(old, killed):
    """The same command after a kill is refused, in words that help, and with nothing written."""
    before = contents(killed)
    with pytest.raises(RecipeError, match=r"holds another run than .*iter_00000004; replace it \(--overwrite\), or"):
        room.train(RECIPE, killed, resume=path_of(old, 4))

    assert before == contents(killed)


def test_going_on_there_a_second_time_may_replace_it(old, killed):
    """When it is asked for; the log is that of one go."""
    state = room.train(RECIPE, killed, resume=path_of(old, 4), overwrite=True).state

    assert pr.digest(pr.load(old)) == pr.digest(state)
    assert [6, 8, 10, 12] == iters(killed)


def test_the_checkpoints_of_another_run_are_not_lost(old, tmp_path):
    """Neither these nor the recipe nor the log, and how to go on with them is said."""
    other = attrs.evolve(RECIPE, epochs=1)
    room.train(other, tmp_path / "new")
    before = contents(tmp_path / "new")
    with pytest.raises(RecipeError, match=r"holds another run than .*; go on with it \(--resume alone\), replace it"):
        room.train(RECIPE, tmp_path / "new", resume=path_of(old, 4))
    assert before == contents(tmp_path / "new")

    room.train(RECIPE, tmp_path / "new", resume=path_of(old, 4), overwrite=True)
    assert ("iter_00000008", "iter_00000012") == names(tmp_path / "new")


def test_a_run_that_is_over_is_not_gone_on_with_elsewhere(old, tmp_path):
    """There would be nothing, and nobody is told that there is."""
    with pytest.raises(RecipeError, match=r"iter_00000012 is of a run that is over, and nothing is left to be done in"):
        room.train(RECIPE, tmp_path / "new", resume=old)

    assert not (tmp_path / "new").exists()


def test_lines_that_are_begun_anew_are_told(old):
    """A run without its checkpoints starts from the beginning, and so does its log."""
    shutil.rmtree(old / "checkpoints")
    notes = []
    room.train(RECIPE, old, resume="last", say=notes.append)

    assert [f"{old} has no checkpoint yet; starting from the beginning; the 6 lines of its log are begun anew"] == notes
    assert [2, 4, 6, 8, 10, 12] == iters(old)


def test_what_is_not_in_force_is_told(old):
    """A run that is beyond the end that is asked for stays as it is, and so it is said."""
    before, notes = contents(old), []
    short = attrs.evolve(RECIPE, epochs=2, optimizer=pr.optim.SGD(lr=0.2), keep=9)
    outcome = room.train(short, old, resume="last", asked=["epochs", "optimizer.lr"], say=notes.append)

    assert (12, True) == (int(outcome.state["iter"]), outcome.finished)
    assert {
        f"going on from {path_of(old, 12)}",
        "optimizer.lr: 0.1 -> 0.2: not in force, for the run is over there: nothing more is computed or written down",
        "epochs: 3 -> 2",
        "keep: none -> 9: no bit of the run depends on it",
    } == set(notes)
    assert before == contents(old)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_does_not_take_the_recipe(tmp_path, monkeypatch, code):
    """It is nobody's mistake, and leaves nothing half written."""

    def refuses(path):
        if path.name == ".recipe.toml.new":
            raise OSError(code, "no", str(path))

    monkeypatch.setattr("purerun.checkpoint.publish.sync", refuses)
    with pytest.raises(SaveError, match=r"recipe\.toml: cannot be written: .*no"):
        room.train(RECIPE, tmp_path / "run")

    assert ["log.jsonl"] == [path.name for path in (tmp_path / "run").iterdir()]


def test_a_recipe_is_written_once_the_directory_is_the_run_s(old):
    """One that another run has in its place stays, whatever refuses this one."""
    before = contents(old)
    (old / "log.jsonl").unlink()
    (old / "log.jsonl").mkdir()
    with pytest.raises(SinkError, match=r"log\.jsonl: expected a file in a folder, found something else: .*directory"):
        room.train(attrs.evolve(RECIPE, epochs=1), old, overwrite=True)

    assert {path: text for path, text in before.items() if path.name != "log.jsonl"} == contents(old)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_in_the_place_of_the_directory(tmp_path, place):
    """It is a mistake, and says so."""
    (tmp_path / "file").write_text("precious")
    with pytest.raises((RecipeError, SinkError), match=r"file(/run/log\.jsonl)?: (cannot be written|expected a file)"):
        room.train(RECIPE, tmp_path / place)

    assert "precious" == (tmp_path / "file").read_text()


def test_what_a_run_would_lose(old, tmp_path):
    """A directory with lines of a log or with checkpoints; an empty one has nothing to lose."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").touch()
    held = {each: holds_run(tmp_path / each) for each in ("nowhere", "empty", "old")}
    (old / "log.jsonl").unlink()

    assert {"nowhere": False, "empty": False, "old": True} == held
    assert holds_run(old)
