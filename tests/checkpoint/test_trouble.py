"""Trouble with the disk itself: one clear line that says what cannot be done, for reading and for writing."""

from __future__ import annotations

import tempfile

import pytest
import torch

import purerun as pr
from purerun.checkpoint import (
    Best,
    CheckpointError,
    SaveError,
    find,
    last,
    name_of,
    names,
    newest,
    path_of,
    point,
    pointers,
    prune,
    read_manifest,
    remove,
    sweep,
    unpoint,
)
from purerun.checkpoint.pointer import LostPointer
from purerun.testing import counted
from tests.checkpoint.obeying import obeying


@pytest.fixture
def run(tmp_path):
    """A run of three checkpoints, with the rest of a killed save beside them."""
    for iter in (1, 2, 3):
        pr.save(counted(iter=iter, params={"w": torch.ones(2)}), path_of(tmp_path, iter))
    point(tmp_path, name_of(3))
    point(tmp_path, name_of(2), "best_accuracy")
    (tmp_path / "checkpoints" / f".{name_of(4)}.new").mkdir()
    yield tmp_path
    (tmp_path / "checkpoints").chmod(0o755)


def refused(act, error, match):
    with pytest.raises(error, match=match) as caught:
        obeying(act)
    assert error is caught.type
    assert 1 == len(str(caught.value).splitlines())


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o600], ids=["at all", "listed", "entered"])
def test_a_folder_that_cannot_be_read(run, mode):
    """Whatever is asked of the run."""
    (run / "checkpoints").chmod(mode)
    acts = [names, lambda run: newest(run, pr.load), find, pr.load, lambda run: prune(run, 1)]
    for act in [*acts, *([] if mode == 0o600 else [pointers, sweep])]:
        refused(lambda act=act: act(run), CheckpointError, "cannot be read: Permission denied; look who may read it")


def test_a_run_that_cannot_be_entered(run):
    """The run itself, and the one checkpoint."""
    run.chmod(0o000)
    for act in (find, names, pointers, lambda run: read_manifest(path_of(run, 1)), lambda run: find(path_of(run, 1))):
        refused(lambda act=act: act(run), CheckpointError, "Permission denied")
    run.chmod(0o755)


@pytest.mark.filterwarnings("ignore::purerun.checkpoint.LostPointer")
def test_a_pointer_that_cannot_be_read(run):
    """It is as good as damaged."""
    (run / "checkpoints" / "last").chmod(0o000)

    assert path_of(run, 3) == obeying(lambda: find(run))
    assert obeying(lambda: last(run)) is None


@pytest.mark.parametrize(
    "act",
    [
        sweep,
        lambda run: remove(run, name_of(1)),
        lambda run: prune(run, 1),
        lambda run: prune(run, None, [Best("accuracy")]),
        lambda run: point(run, name_of(1)),
        lambda run: unpoint(run, "last"),
        lambda run: pr.save(counted(), path_of(run, 1)),
        lambda run: pr.save(counted(), path_of(run, 4)),
    ],
    ids=["sweep", "remove", "prune", "prune best", "point", "unpoint", "replace", "save"],
)
def test_a_folder_that_cannot_be_written(run, act):
    """It is a SaveError, with which a run may go on; the checkpoints are as they were."""
    (run / "checkpoints").chmod(0o555)
    refused(lambda: act(run), SaveError, r"checkpoints/\S+: cannot be written: Permission denied; free space or")

    assert tuple(map(name_of, (1, 2, 3))) == names(run)
    assert {"last": name_of(3), "best_accuracy": name_of(2)} == pointers(run)


def test_no_temporary_space(monkeypatch, tmp_path):
    """What is sent or fetched goes through it: the URL is named, and the way out."""
    pr.save(counted(iter=3), "memory://trouble/a")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    way = "^memory://trouble/a: goes through temporary space .*: No such file.*set TMPDIR"
    for act, error in ((pr.load, CheckpointError), (read_manifest, CheckpointError), (put, SaveError)):
        refused(lambda act=act: act("memory://trouble/a"), error, way)


def put(url):
    pr.save(counted(), url)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"\xff\xfe\x00\x1b[31m" * 9, "what is no text"),
        ("é".encode(), "what is no text"),
        (b"x" * 1000, f"'{'x' * 24}'"),
        (b"", "''"),
    ],
    ids=["bytes", "not ASCII", "long", "empty"],
)
def test_a_damaged_pointer_is_said_in_short(run, text, found):
    """The run is read all the same, from its highest checkpoint, as if there were no pointer, and a warning says so."""
    (run / "checkpoints" / "last").write_bytes(text)
    with pytest.warns(LostPointer, match=f"last: expected a name such as iter_00000500, found {found}; write") as told:
        assert 3 == int(pr.load(run)["iter"])
    assert str(told[0].message).isprintable()
    assert len(str(told[0].message)) < 250 + len(str(run))

    with pytest.warns(LostPointer):
        assert last(run) is None
    with pytest.warns(LostPointer):
        assert path_of(run, 3) == find(run) == newest(run, pr.load).path


def test_what_last_names_is_missed(run):
    """A checkpoint that is gone is refused as a damaged one is; going on, the one before it is used, and it is said."""
    remove(run, name_of(3))
    with pytest.raises(CheckpointError, match=name_of(3)):
        pr.load(run)
    found = newest(run, pr.load)

    assert path_of(run, 2) == found.path
    assert (f"{run}/checkpoints/last: names {name_of(3)}, which is gone",) == found.rejected


def test_links_in_a_circle(tmp_path):
    """Nothing can be written there; it is said in words."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for place in (tmp_path / "a", tmp_path / "a" / "iter_00000001"):
        with pytest.raises((SaveError, CheckpointError), match=r"cannot be written|found a file or a link"):
            pr.save(counted(), place)
