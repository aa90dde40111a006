"""Checkpoints elsewhere: sent and fetched by URL, whole or not there, whatever fails in between."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import purerun as pr
from purerun.checkpoint import (
    CheckpointError,
    LostPointer,
    SaveError,
    fetched,
    is_url,
    read_manifest,
    read_weights,
)
from purerun.checkpoint.remote import sent
from purerun.testing import counted
from tests.checkpoint.pickled import written

OLD, NEW = (counted(iter=n, params={"w": torch.full((4,), float(n)), "b": torch.arange(n + 1)}) for n in (1, 2))
FILES = ("manifest.json", "state.safetensors")


class Killed(BaseException):
    """The process is gone."""


class Disk(LocalFileSystem):
    """A folder of this machine, reached as if it were far away."""

    protocol = ("disk",)
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("disk://"))


class Faulty(MemoryFileSystem):
    """An object store whose nth change, from 1 on, fails; every call is noted."""

    protocol = ("faulty",)
    cachable = False
    store, pseudo_dirs = {}, [""]
    left, error, torn, calls = 10**6, None, False, []

    def _change(self, name, path, change, partly):
        cls = type(self)
        cls.calls.append((name, path.rpartition("/")[2]))
        cls.left -= 1
        if cls.left == 0:
            if cls.torn:
                partly()
            raise cls.error
        if cls.left < 0 and isinstance(cls.error, Killed):
            raise cls.error  # nothing works after a kill
        return change()

    def put_file(self, lpath, rpath, **_):
        raw = Path(lpath).read_bytes()
        return self._change(
            "put", rpath, lambda: self.pipe_file(rpath, raw), lambda: self.pipe_file(rpath, raw[: len(raw) // 2])
        )

    def cp_file(self, path1, path2, **_):
        raw = self.cat_file(path1)
        return self._change(
            "copy", path2, lambda: self.pipe_file(path2, raw), lambda: self.pipe_file(path2, raw[: len(raw) // 2])
        )

    def rm_file(self, path):
        return self._change("remove", path, lambda: super(Faulty, self).rm_file(path), lambda: None)


fsspec.register_implementation("disk", Disk, clobber=True)
fsspec.register_implementation("faulty", Faulty, clobber=True)


def failing(nth, error, torn):
    Faulty.left, Faulty.error, Faulty.torn, Faulty.calls = nth, error, torn, []


@pytest.fixture(autouse=True)
def _empty():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    Faulty.store.clear()
    failing(10**6, None, torn=False)


@pytest.fixture(params=["memory", "disk"])
def url(request, tmp_path):
    """A place for a checkpoint, in memory or on a disk that is reached as if it were far away."""
    return {"memory": "memory://bucket/run/a", "disk": f"disk://{tmp_path}/run/a"}[request.param]


def raw(url):
    """Read all that is at a place and beside it, by name."""
    system, root = fsspec.core.url_to_fs(url)
    parent = root.rpartition("/")[0]
    return {name.removeprefix(f"{parent}/"): system.cat_file(name) for name in system.find(parent)}


def rewrite(url, name, content):
    system, root = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{root}/{name}", content)


def test_a_state_comes_back(url):
    """Bit for bit, with the manifest that was told."""
    manifest = pr.save(NEW, url, recipe={"lr": 0.1}, memory={"Log": {"bytes": 3}})

    assert () == pr.diff(NEW, pr.load(url))
    assert manifest == read_manifest(url)
    assert {"a/manifest.json", "a/state.safetensors"} == set(raw(url))


def test_what_is_there_is_what_would_be_here(url, tmp_path):
    """The same two files: a folder can be copied there and back by any tool."""
    pr.save(NEW, tmp_path / "here")
    pr.save(NEW, url)
    there = raw(url)
    (tmp_path / "back").mkdir()
    for name in FILES:
        (tmp_path / "back" / name).write_bytes(there[f"a/{name}"])

    assert (tmp_path / "here" / "state.safetensors").read_bytes() == there["a/state.safetensors"]
    assert () == pr.diff(NEW, pr.load(tmp_path / "back"))


def test_a_checkpoint_is_replaced(url):
    """Nothing of the old one is left, nor anything beside it."""
    pr.save(OLD, url)
    pr.save(NEW, url)

    assert () == pr.diff(NEW, pr.load(url))
    assert {"a/manifest.json", "a/state.safetensors"} == set(raw(url))


@pytest.mark.parametrize("file", FILES)
def test_every_tenth_byte_flipped_is_noticed(url, file):
    """As it is here; each error names the URL, and no place of this machine."""
    pr.save(NEW, url)
    sound = raw(url)[f"a/{file}"]
    for at in range(0, len(sound), 10):
        rewrite(url, file, sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        with pytest.raises(CheckpointError, match=f"^{url}") as caught:
            pr.load(url)
        assert "purerun-" not in str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_noticed(url, file):
    """By `read_manifest` too, which fetches no tensor."""
    pr.save(NEW, url)
    rewrite(url, file, raw(url)[f"a/{file}"][:-1])
    for read in (pr.load, read_manifest):
        with pytest.raises(CheckpointError, match=f"^{url}/{file}: "):
            read(url)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_noticed(url, file):
    """A checkpoint without a manifest is not there; one without tensors is damaged."""
    pr.save(NEW, url)
    system, root = fsspec.core.url_to_fs(url)
    system.rm_file(f"{root}/{file}")
    with pytest.raises(CheckpointError, match=f"^{url}"):
        pr.load(url)


def test_tensors_of_a_false_size_are_not_fetched(url):
    """The manifest is looked at first: what does not fit it is not worth the wait."""
    pr.save(NEW, url)
    rewrite(url, "state.safetensors", b"x" * 10_000)
    with Fetched(url) as names, pytest.raises(CheckpointError, match=r"expected \d+ bytes, found 10000"):
        pr.load(url)

    assert ["manifest.json"] == names


def test_a_manifest_of_absurd_size_is_not_fetched(url, monkeypatch):
    """Nor read."""
    monkeypatch.setattr("purerun.checkpoint.manifest.LARGEST", 1000)
    pr.save(NEW, url)
    with Fetched(url) as names, pytest.raises(CheckpointError, match="expected at most 1000 bytes"):
        pr.load(url)

    assert [] == names


class Fetched:
    """A `with` block that lists the files that are fetched in it."""

    def __init__(self, url):
        self.kind = type(fsspec.core.url_to_fs(url)[0])

    def __enter__(self):
        names, own = [], self.kind.get_file
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(
            self.kind,
            "get_file",
            lambda system, path, *rest: (names.append(path.rpartition("/")[2]), own(system, path, *rest)),
        )
        return names

    def __exit__(self, *_):
        self.patch.undo()


PLACE = "faulty://bucket/run/a"


def states_found():
    try:
        return int(pr.load(PLACE)["iter"])
    except CheckpointError:
        return None


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
@pytest.mark.parametrize(
    "error", [Killed(), OSError("gone"), RuntimeError("no such bucket")], ids=lambda e: type(e).__name__
)
def test_a_first_save_that_fails_leaves_nothing_or_all(error, torn):
    """Killed or refused at each change, with half of the object written or none: nothing wrong is ever loaded."""
    for nth in range(1, 3):
        Faulty.store.clear()
        failing(nth, error, torn)
        with pytest.raises((Killed, SaveError)):
            pr.save(NEW, PLACE)
        failing(10**6, None, torn=False)

        assert states_found() is None
        pr.save(NEW, PLACE)
        assert () == pr.diff(NEW, pr.load(PLACE))
        assert {"a/manifest.json", "a/state.safetensors"} == set(raw(PLACE))


def test_the_changes_of_a_save_are_counted():
    """The tests below fail each of them in turn."""
    pr.save(OLD, PLACE)
    assert [("put", "state.safetensors"), ("put", "manifest.json")] == Faulty.calls
    failing(10**6, None, torn=False)
    pr.save(NEW, PLACE)

    both = ["state.safetensors", "manifest.json"]
    assert [
        *(("put", name) for name in both),
        ("remove", "manifest.json"),
        *(("copy", name) for name in both),
        *(("remove", name) for name in reversed(both)),
    ] == Faulty.calls


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
@pytest.mark.parametrize("error", [Killed(), OSError("gone")], ids=["killed", "failed"])
@pytest.mark.parametrize("nth", range(1, 8))
def test_a_replacing_save_that_fails_leaves_the_old_or_the_new(nth, error, torn):
    """At each change: a whole one is found, never a mixture; the next save tidies up."""
    pr.save(OLD, PLACE)
    failing(nth, error, torn)
    with pytest.raises((Killed, SaveError)):
        pr.save(NEW, PLACE)
    failing(10**6, None, torn=False)

    assert (1 if nth <= 3 else 2) == states_found()
    assert states_found() == read_manifest(PLACE).counters["iter"]
    pr.save(counted(iter=3), PLACE)
    assert 3 == states_found()
    assert {"a/manifest.json", "a/state.safetensors"} == set(raw(PLACE))


@pytest.mark.parametrize("first", range(1, 8))
def test_a_save_that_is_killed_twice_leaves_a_whole_one(first):
    """Whatever the first kill left, and wherever the second comes."""
    for second in range(1, 12, 3):
        Faulty.store.clear()
        failing(10**6, None, torn=False)
        pr.save(OLD, PLACE)
        for nth in (first, second):
            failing(nth, Killed(), torn=True)
            with contextlib.suppress(Killed):
                pr.save(NEW, PLACE)
        failing(10**6, None, torn=False)

        assert states_found() in (1, 2)


def test_a_file_of_which_a_part_arrives_is_noticed(monkeypatch):
    """A store that loses bytes without a word."""
    monkeypatch.setattr(
        Faulty, "put_file", lambda self, lpath, rpath: self.pipe_file(rpath, Path(lpath).read_bytes()[:-1])
    )
    with pytest.raises(SaveError, match=r"a/state\.safetensors: sent \d+ bytes, found \d+; save again"):
        pr.save(NEW, PLACE)

    assert states_found() is None


def test_a_store_without_copies_is_copied_through_here(monkeypatch):
    """Some file systems have no such call."""
    url = "memory://bucket/a"

    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(MemoryFileSystem, "cp_file", refuse)
    pr.save(OLD, url)
    pr.save(NEW, url)

    assert () == pr.diff(NEW, pr.load(url))


def test_of_a_run_its_last_checkpoint_is_fetched(url):
    """The one that `last` names; the highest while there is no pointer; no other one is fetched."""
    for state in (OLD, NEW):
        pr.save(state, f"{url}/checkpoints/iter_{int(state['iter']):08d}")
    with Fetched(url) as names:
        assert 2 == int(pr.load(url)["iter"])
    assert ["manifest.json", "state.safetensors"] == names

    rewrite(url, "checkpoints/last", b"iter_00000001\n")
    assert 1 == int(pr.load(url)["iter"])
    assert torch.equal(OLD["params", "w"], read_weights(url)["w"])


@pytest.mark.parametrize("text", ["../../etc", "/etc/passwd", "iter_00000001/../x", "x" * 10_000])
def test_a_pointer_elsewhere_leads_nowhere(url, text):
    """It holds a plain name, or it is passed over, as it is here; one of absurd size is not even fetched."""
    for state in (OLD, NEW):
        pr.save(state, f"{url}/checkpoints/iter_{int(state['iter']):08d}")
    rewrite(url, "checkpoints/last", text.encode())
    with Fetched(url) as names, pytest.warns(LostPointer, match=f"^{url}/checkpoints/last: expected"):
        assert 2 == int(pr.load(url)["iter"])

    assert [*([] if len(text) > 64 else ["last"]), "manifest.json", "state.safetensors"] == names


@pytest.mark.parametrize("url", ["memory://bucket/nothing", "memory://bucket/other", "disk:///nowhere/at/all"])
def test_what_is_no_checkpoint_is_named(url):
    """Nothing, or something else: the error names the URL."""
    rewrite("memory://bucket/other", "notes.txt", b"hello")
    with pytest.raises(CheckpointError, match=f"^{url}: expected a checkpoint or the directory of a run"):
        pr.load(url)
    with pytest.raises(CheckpointError, match=f"^{url}/manifest.json: expected a file, found none"):
        read_manifest(url)


def test_nothing_else_is_replaced():
    """A run, a folder of something else, a file."""
    pr.save(OLD, "memory://bucket/run/checkpoints/iter_00000001")
    rewrite("memory://bucket/other", "notes.txt", b"hello")
    for place, what in (
        ("run", "a folder that holds checkpoints"),
        ("other/notes.txt", "a file"),
        ("other", "notes.txt"),
    ):
        with pytest.raises(CheckpointError, match=f"expected a checkpoint to replace, or nothing, found .*{what}"):
            pr.save(NEW, f"memory://bucket/{place}")


def test_files_of_weights_are_fetched(tmp_path):
    """One file by its URL; errors call it so."""
    file = written(tmp_path, {"state_dict": {"w": torch.ones(2)}})
    rewrite("memory://bucket", "a.pth", file.read_bytes())
    rewrite("memory://bucket", "b.pth", b"hello")

    assert [1.0, 1.0] == read_weights("memory://bucket/a.pth")["w"].tolist()
    with pytest.raises(CheckpointError, match=r"^memory://bucket/b\.pth: expected weights that can be read"):
        read_weights("memory://bucket/b.pth")


def test_a_file_url_is_a_path(tmp_path):
    """What is on this machine is written as always: to the disk, and renamed."""
    pr.save(NEW, f"file://{tmp_path}/a")

    assert () == pr.diff(NEW, pr.load(tmp_path / "a"))
    assert () == pr.diff(NEW, pr.load(f"file://{tmp_path}/a"))
    assert read_manifest(tmp_path / "a") == read_manifest(f"local://{tmp_path}/a")
    with fetched(f"file://{tmp_path}/a") as there, sent(f"file://{tmp_path}/b") as here:
        assert (tmp_path / "a", tmp_path / "b") == (there, here)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket/a", True),
        ("memory://a", True),
        ("simplecache::s3://bucket/a", True),
        ("runs/a", False),
        ("/runs/a:b//c", False),
        ("file:///runs/a", False),
        ("://a", False),
        ("s3:/a", False),
        (Path("runs/a"), False),
    ],
)
def test_what_is_a_url(path, expected):
    """A scheme, and two slashes."""
    assert expected == is_url(path)


@pytest.mark.parametrize("url", ["nothing://a/b", "memory://"])
def test_a_url_that_nobody_knows_is_refused(url):
    """In one line."""
    with pytest.raises(CheckpointError) as caught:
        pr.load(url)
    assert 1 == len(str(caught.value).splitlines())


def test_without_fsspec_it_is_said_what_to_install(monkeypatch):
    """It is an optional part."""
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    for act in (lambda: pr.save(NEW, "memory://a"), lambda: pr.load("memory://a"), lambda: read_manifest("memory://a")):
        with pytest.raises(CheckpointError, match=r"memory://a: needs fsspec; pip install 'purerun\[remote\]'"):
            act()


def test_what_fails_on_the_way_is_told_in_one_line(monkeypatch):
    """Whatever a file system raises."""
    pr.save(NEW, PLACE)

    def fail(*_, **__):
        raise TimeoutError("the network\nis down")

    for call in ("info", "get_file"):
        with monkeypatch.context() as patch:
            patch.setattr(Faulty, call, fail)
            with pytest.raises(CheckpointError, match="the network is down"):
                pr.load(PLACE)


def test_nothing_is_left_on_this_machine(tmp_path, monkeypatch):
    """What was made to be sent or fetched is gone afterwards, also after a failure."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pr.save(NEW, PLACE)
    state = pr.load(PLACE, verify=False)
    failing(1, OSError("gone"), torn=False)
    with pytest.raises(SaveError):
        pr.save(NEW, PLACE)

    assert () == pr.diff(NEW, state)  # mapped: it stays readable
    assert [] == list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)
