"""Atomicity: a save that fails or is killed anywhere leaves what was good before, or the new one, and nothing torn."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil

import pytest
import torch

import purerun as pr
from purerun.checkpoint import (
    CheckpointError,
    SaveError,
    find,
    last,
    name_of,
    names,
    newest,
    path_of,
    point,
    remove,
    tensors,
)
from purerun.testing import counted

OLD, NEW = (counted(iter=n, params={"w": torch.full((4,), float(n))}) for n in (1, 2))


class Killed(BaseException):
    """The process is gone."""


class Disk:
    """The calls that change the disk, counted; the nth one fails."""

    def __init__(self, monkeypatch, nth, *, killed):
        self.left, self.killed, self.calls = nth, killed, []
        for module, name in [
            (os, "replace"),
            (os, "fsync"),
            (os, "mkdir"),
            (shutil, "rmtree"),
            (tensors, "serialize_file"),
        ]:
            monkeypatch.setattr(module, name, self.counted(name, getattr(module, name)))

    def counted(self, name, call):
        def counting(*args, **more):
            self.calls.append(name)
            self.left -= 1
            if self.killed and self.left < 0:
                raise Killed  # nothing works after a kill, cleaning up neither
            if self.left == 0:
                raise Killed if self.killed else OSError(errno.ENOSPC, "No space left on device")
            return call(*args, **more)

        return counting


def calls_of(action):
    """Count the calls of an action that succeeds."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 10**6, killed=False)
        action()
    return disk.calls


def broken_at(nth, action, *, killed):
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, nth, killed=killed)
        with pytest.raises((Killed, CheckpointError, OSError)) as caught:
            action()
    return caught.type


def each_failure(tmp_path, killed):
    """Replace a checkpoint, failing at the first call, the second, and so on."""
    pr.save(OLD, tmp_path / "count")
    calls = calls_of(lambda: pr.save(NEW, tmp_path / "count"))
    assert {"replace", "fsync", "mkdir", "rmtree", "serialize_file"} == set(calls)
    for nth in range(1, len(calls) + 1):
        place = tmp_path / str(nth) / "a"
        pr.save(OLD, place)
        kind = OSError
        try:
            kind = broken_at(nth, lambda place=place: pr.save(NEW, place), killed=killed)
        except pytest.fail.Exception:
            # Only sweeping up the old one may fail without a word: it is out of the way already.
            assert ("rmtree", len(calls), False) == (calls[nth - 1], nth, killed)
        yield place, kind


def test_a_failed_save_leaves_the_old_checkpoint_in_its_place(tmp_path):
    """The disk is full at any call: a clear error, and the place holds a whole checkpoint and nothing beside it."""
    for place, kind in each_failure(tmp_path, killed=False):
        assert issubclass(kind, SaveError | OSError)
        assert int(pr.load(place)["iter"]) in (1, 2)
        assert place.exists()


def test_a_killed_save_leaves_one_that_loads(tmp_path):
    """Killed at any call: `load` finds the old one or the new one, whole; the next save tidies up."""
    for place, _ in each_failure(tmp_path, killed=True):
        assert int(pr.load(place)["iter"]) in (1, 2)
        pr.save(NEW, place)
        assert () == pr.diff(NEW, pr.load(place))
        assert ["a"] == [entry.name for entry in place.parent.iterdir()]


def test_a_save_killed_twice_leaves_one_that_loads(tmp_path):
    """Killed anywhere, and the next save killed anywhere: there is always a whole one to load."""
    pr.save(OLD, tmp_path / "count")
    count = len(calls_of(lambda: pr.save(NEW, tmp_path / "count")))
    for first in range(1, count + 1):
        for second in range(1, count + 3, 2):
            place = tmp_path / f"{first}-{second}" / "a"
            pr.save(OLD, place)
            broken_at(first, lambda place=place: pr.save(NEW, place), killed=True)
            with pytest.MonkeyPatch.context() as patch:
                Disk(patch, second, killed=True)
                with contextlib.suppress(Killed):
                    pr.save(NEW, place)
            assert int(pr.load(place)["iter"]) in (1, 2)


def test_a_first_save_that_is_killed_leaves_nothing_or_all(tmp_path):
    """Where nothing was, there is nothing or a whole checkpoint afterwards; the next save works."""
    count = len(calls_of(lambda: pr.save(NEW, tmp_path / "count" / "a")))
    for nth in range(1, count + 1):
        place = tmp_path / str(nth) / "a"
        if nth < count:
            broken_at(nth, lambda place=place: pr.save(NEW, place), killed=True)
        try:
            found = pr.load(place)
        except CheckpointError:
            found = NEW
        assert () == pr.diff(NEW, found)
        pr.save(NEW, place)
        assert () == pr.diff(NEW, pr.load(place))


def test_an_error_says_where_and_what_to_do(tmp_path, monkeypatch):
    """A full disk is one line with the place and the remedy."""
    Disk(monkeypatch, 3, killed=False)
    with pytest.raises(CheckpointError, match=r"a: cannot be written: .*No space left.*free space"):
        pr.save(NEW, tmp_path / "a")


def test_a_read_only_place_is_an_error(tmp_path):
    """A place whose parent is a file cannot be written."""
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        pr.save(NEW, tmp_path / "file" / "a")


@pytest.mark.parametrize("inside", ["log.jsonl", "checkpoints"])
def test_only_checkpoints_are_replaced(inside, tmp_path):
    """A folder that holds anything else (a run, a home directory) is never replaced."""
    (tmp_path / "a" / inside).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=inside):
        pr.save(NEW, tmp_path / "a")

    assert (tmp_path / "a" / inside).exists()


def test_a_file_is_not_replaced(tmp_path):
    """Nor is a file."""
    (tmp_path / "a").write_text("precious")
    with pytest.raises(CheckpointError, match="a file"):
        pr.save(NEW, tmp_path / "a")

    assert "precious" == (tmp_path / "a").read_text()


def test_an_empty_folder_is_taken(tmp_path):
    """A folder that was made for it is used."""
    (tmp_path / "a").mkdir()
    pr.save(NEW, tmp_path / "a")

    assert () == pr.diff(NEW, pr.load(tmp_path / "a"))


def test_the_pointer_is_the_old_one_or_the_new_one(tmp_path):
    """Killed at any call, `last` names one of the two."""
    pr.save(OLD, path_of(tmp_path, 1))
    pr.save(NEW, path_of(tmp_path, 2))
    point(tmp_path, name_of(1))
    count = len(calls_of(lambda: point(tmp_path, name_of(1))))
    for nth in range(1, count + 1):
        point(tmp_path, name_of(1))
        broken_at(nth, lambda: point(tmp_path, name_of(2)), killed=True)
        assert last(tmp_path) in (name_of(1), name_of(2))
        assert int(pr.load(tmp_path)["iter"]) in (1, 2)
    point(tmp_path, name_of(2))
    assert 2 == int(pr.load(tmp_path)["iter"])


def test_removing_is_all_or_nothing_to_see(tmp_path):
    """A removal that is killed leaves a whole checkpoint or none, and the others as they were."""
    for iter, state in ((1, OLD), (2, NEW)):
        pr.save(state, path_of(tmp_path, iter))
    point(tmp_path, name_of(2))
    count = len(calls_of(lambda: remove(tmp_path, name_of(1))))
    for nth in range(1, count + 1):
        pr.save(OLD, path_of(tmp_path, 1))
        with contextlib.suppress(pytest.fail.Exception):
            broken_at(nth, lambda: remove(tmp_path, name_of(1)), killed=True)
        for name in names(tmp_path):
            pr.load(tmp_path / "checkpoints" / name)
        assert path_of(tmp_path, 2) == newest(tmp_path, pr.load).path
    remove(tmp_path, name_of(1))
    assert (name_of(2),) == names(tmp_path)


def test_a_checkpoint_between_two_renames_is_found(tmp_path):
    """What lies beside its place, and only there, is listed, found and loaded."""
    pr.save(OLD, path_of(tmp_path, 1))
    folder = tmp_path / "checkpoints"
    (folder / name_of(1)).rename(folder / f".{name_of(1)}.old")

    assert (name_of(1),) == names(tmp_path)
    assert f".{name_of(1)}.old" == find(tmp_path).name
    assert () == pr.diff(OLD, pr.load(tmp_path))
    assert () == pr.diff(OLD, pr.load(folder / name_of(1)))


def test_names_sort_by_iteration(tmp_path):
    """Beyond eight digits the order is still the order of iterations; other entries are not listed."""
    for name in ("iter_100000000", "iter_99999999", "iter_00000007", "notes", "iter_7", ".iter_00000009.gone"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)

    assert ("iter_00000007", "iter_99999999", "iter_100000000") == names(tmp_path)
    assert () == names(tmp_path / "elsewhere")
