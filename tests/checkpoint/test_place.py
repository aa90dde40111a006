"""Places: what no file can be called is refused in one line, and a URL is never taken for a path of that name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import purerun as pr
from purerun.checkpoint import (
    CheckpointError,
    SaveError,
    export,
    find,
    has_scheme,
    last,
    name_of,
    names,
    newest,
    path_of,
    point,
    pointers,
    publish_weights,
    read_manifest,
    read_weights,
)
from purerun.testing import counted

STATE = counted(iter=3, params={"w": torch.ones(2)})

ODD = {"nothing": "", "a null character": "a\0b", "a surrogate": "a\ud800b", "no UTF-8": os.fsdecode(b"a\xffb")}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder of its own, in which a path would be taken for a relative one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(act, error, match):
    with pytest.raises(error, match=match) as caught:
        act()
    assert 1 == len(str(caught.value).splitlines())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_what_no_file_can_be_called_is_refused(here, name):
    """To write and to read; nothing is written.  What is no UTF-8 the reader of the format would not take."""
    for act in (
        lambda: pr.save(STATE, name),
        lambda: pr.load(name),
        lambda: find(name),
        lambda: read_manifest(name),
        lambda: read_weights(name),
        lambda: names(name),
        lambda: newest(name, pr.load),
    ):
        one_line(act, CheckpointError, "expected a path, got '")

    assert [] == list(here.iterdir())


def test_what_is_too_long_is_refused(here):
    """As the file system says it; also a name for which there is room, but not for what is beside it on the way."""
    for length in (250, 300):
        one_line(lambda length=length: pr.save(STATE, "x" * length), SaveError, "x: cannot be written: File name too")
    for act in (pr.load, find, read_manifest, names, pointers, lambda place: newest(place, pr.load)):
        one_line(lambda act=act: act("x" * 300), CheckpointError, "File name too long")
    pr.save(STATE, "a")
    one_line(lambda: export("a", "x" * 300 + ".pth"), CheckpointError, "File name too long")
    one_line(lambda: export("a", "x" * 248 + ".pth"), SaveError, "File name too long")

    assert [here / "a"] == list(here.iterdir())


@pytest.mark.parametrize("given", [".", Path(), "../here"])
def test_the_folder_that_a_process_works_in_is_not_replaced(tmp_path, monkeypatch, given):
    """It would be another folder then, and what the process works in would be gone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    one_line(lambda: pr.save(STATE, given), CheckpointError, "found the folder that this process works in")

    assert [] == list(Path.cwd().iterdir())


def test_a_url_of_this_machine_is_its_path(here):
    """Wherever a place is given: no folder called `file:` comes into being, and none is looked for."""
    run = here / "run"
    url = f"file://{run}"
    pr.save(STATE, path_of(url, 3))
    point(url, name_of(3))
    export(url, f"file://{here}/a.pth")
    published = publish_weights(url, url, "net")

    assert ((name_of(3),), name_of(3), {"last": name_of(3)}) == (names(url), last(url), pointers(url))
    assert path_of(run, 3) == find(url) == newest(url, pr.load).path
    assert () == pr.diff(STATE, pr.load(url))
    assert {"run", "a.pth"} == {entry.name for entry in here.iterdir()}
    assert run == published.parent


@pytest.mark.parametrize(
    "given", ["s3:/bucket/a", Path("s3://bucket/a"), Path("file:///runs/a"), Path("memory://runs/a")]
)
def test_what_was_a_url_is_not_a_path(here, given):
    """A Path has made one slash of the two: what it was cannot be told for sure, so it is refused."""
    for act in (lambda: pr.save(STATE, given), lambda: pr.load(given), lambda: names(given), lambda: find(given)):
        one_line(act, CheckpointError, "expected a path of this machine, got .*; URLs, as plain texts, are for")

    assert [] == list(here.iterdir())


@pytest.mark.parametrize("url", ["s3://bucket/a", "memory://a/b", "simplecache::s3://bucket/a"])
def test_a_run_is_not_looked_for_at_a_url(url):
    """Only single checkpoints are there."""
    for act in (names, find, pointers, last, lambda run: newest(run, pr.load), lambda run: path_of(run, 3)):
        one_line(lambda act=act: act(url), CheckpointError, f"expected a path of this machine, got '{url}'")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket/a", True),
        ("file:///runs/a", True),
        ("simplecache::s3://bucket/a", True),
        (Path("file:///runs/a"), True),
        (Path("s3://bucket/a"), True),
        ("runs/a", False),
        ("/runs/a:/b", False),
        ("runs/s3:/b", False),
        ("c:/runs", False),
        (Path("a:b"), False),
    ],
)
def test_what_has_a_scheme(given, expected):
    """The first part of it ends in a colon; a drive is no scheme."""
    assert expected == has_scheme(given)


def test_a_file_is_called_one(here):
    """Where a checkpoint or a run is expected."""
    (here / "a.pth").write_text("hello")
    one_line(lambda: pr.load("a.pth"), CheckpointError, r"expected a checkpoint .*, found a file; of weights alone")
    one_line(lambda: pr.load("b.pth"), CheckpointError, r"expected a checkpoint .*, found nothing")
