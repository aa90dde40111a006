"""Damage and malice: whatever happened to the files of a checkpoint, it is noticed and said."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import purerun as pr
from purerun.checkpoint import CheckpointError, LostPointer, Manifest, newest, path_of, point, pointed, read_manifest
from purerun.state import seal
from purerun.testing import counted

STATE = counted(iter=5, params={"w": torch.arange(6.0).reshape(2, 3), "z": torch.ones(2, dtype=torch.complex128)})
FILES = ("manifest.json", "state.safetensors")


@pytest.fixture(scope="module")
def good():
    with TemporaryDirectory() as folder:
        pr.save(STATE, f"{folder}/a", recipe={"lr": 0.1}, memory={"Log": {"bytes": 3}})
        yield Path(folder) / "a"


def spoiled(good, file, change):
    """Load a copy in which one file was changed."""
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(good, f"{folder}/a"))
        (copy / file).write_bytes(change((copy / file).read_bytes()))
        return pr.load(copy)


@given(file=st.sampled_from(FILES), place=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_every_flipped_byte_is_noticed(good, file, place, mask):
    """Any byte of any file changed to any other: refused."""

    def flip(raw):
        at = place % len(raw)
        return raw[:at] + bytes([raw[at] ^ mask]) + raw[at + 1 :]

    with pytest.raises(CheckpointError):
        spoiled(good, file, flip)


@given(file=st.sampled_from(FILES), keep=st.integers(0, 10**6))
def test_every_truncation_is_noticed(good, file, keep):
    """A file cut anywhere: refused."""
    with pytest.raises(CheckpointError):
        spoiled(good, file, lambda raw: raw[: keep % len(raw)])


@given(file=st.sampled_from(FILES), more=st.binary(min_size=1, max_size=9))
def test_every_addition_is_noticed(good, file, more):
    """Bytes after the end of a file: refused."""
    with pytest.raises(CheckpointError):
        spoiled(good, file, lambda raw: raw + more)


def test_all_flips_of_a_manifest_are_noticed(good):
    """Not a sample of them: each byte of a manifest, one bit changed."""
    text = (good / "manifest.json").read_text()
    for at, letter in enumerate(text):
        with pytest.raises(CheckpointError):
            Manifest.parse(text[:at] + chr(ord(letter) ^ 1) + text[at + 1 :], "here")


def test_swapped_tensors_are_noticed(good):
    """A sound tensors file of another state: refused, with the leaf that differs."""
    with TemporaryDirectory() as folder:
        pr.save(STATE.replace(params={"w": torch.zeros(2, 3)}), f"{folder}/b")
        other = (Path(folder) / "b" / "state.safetensors").read_bytes()

    with pytest.raises(CheckpointError, match="at params/w"):
        spoiled(good, "state.safetensors", lambda _: other)


def test_without_verification_values_are_believed_and_shapes_are_not(good):
    """`verify=False` skips the hashing; names, shapes and sizes are looked at all the same."""
    with TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(good, f"{folder}/a"))
        raw = (copy / "state.safetensors").read_bytes()
        (copy / "state.safetensors").write_bytes(raw[:-1] + b"\x01")

        assert () != pr.diff(pr.load(copy, verify=False), STATE)
        (copy / "state.safetensors").write_bytes(raw[:-1])
        with pytest.raises(CheckpointError, match="expected"):
            pr.load(copy, verify=False)


@pytest.mark.parametrize("file", FILES)
def test_links_and_holes_are_refused(good, file, tmp_path):
    """A missing file, a link in its place, a folder in its place: each is refused by name."""
    copy = Path(shutil.copytree(good, tmp_path / "a"))
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match="a"):
        read_manifest(copy)
    (copy / file).symlink_to(good / file)
    with pytest.raises(CheckpointError, match="a link or a folder"):
        read_manifest(copy)
    (copy / file).unlink()
    (copy / file).mkdir()
    with pytest.raises(CheckpointError, match="a link or a folder"):
        read_manifest(copy)


def signed(content):
    """Write a manifest down as somebody would who wants it to be believed."""
    text = json.dumps({**content, "checksum": ""}, indent=1) + "\n"
    end = len(text) - 4
    return (text[:end] + hashlib.sha256(text.encode()).hexdigest() + text[end:]).encode()


def forged(good, change):
    """Load a copy whose manifest was changed and signed again."""

    def rewrite(raw):
        content = json.loads(raw)
        del content["checksum"]
        change(content)
        return signed(content)

    return spoiled(good, "manifest.json", rewrite)


def test_a_forgery_that_changes_nothing_loads(good):
    """The forger of these tests signs as purerun does."""
    assert () == pr.diff(STATE, forged(good, lambda content: None))


SIZE = {"bytes": 1, "header": "0" * 64}
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "change",
    [
        {"format": 3},
        {"format": 0},
        {"format": True},
        {"format": "1"},
        {"format": 1.0},
        {"files": {"../state.safetensors": SIZE}},
        {"files": {"/etc/passwd": SIZE}},
        {"files": {"state.safetensors": {"bytes": 10**30, "header": "0" * 64}}},
        {"files": {"state.safetensors": {"bytes": -1, "header": "0" * 64}}},
        {"files": {"state.safetensors": {"bytes": 1, "header": "0" * 64, "module": "os"}}},
        {"files": {}},
        {"files": []},
        {"files": {"state.safetensors": None}},
        {"counters": {"iter": "5"}},
        {"counters": [5]},
        {"digest": "0" * 64},
        {"digest": "0" * 63},
        {"digest": 5},
        {"parent": "../x"},
        {"program": ["import os"]},
        {"leaves": {}},
        {"leaves": {"params/w": "float32 2x3 " + "0" * 64}},
        {"leaves": {"params/w": "float32 2x-3 " + "0" * 64}},
        {"leaves": {"params/w": "float32 9999999999x9999999999 " + "0" * 64}},
        {"leaves": {"params/w": {}}},
        {"strides": {"params/w": [0, 0]}},
        {"strides": {"params/w": [10**12, 1]}},
        {"strides": {"params/w": [1]}},
        {"strides": {"params/w": ["1", "3"]}},
        {"empty": ["params/w"]},
        {"empty": ["params/w/deeper"]},
        {"empty": ["iter"]},
        {"empty": "params"},
        {"versions": {"torch": 2}},
        {"memory": []},
        {"_target_": "os.system"},
    ],
)
def test_forged_manifests_are_refused(good, change):
    """Other formats, other names, wrong types, absurd sizes, unknown fields: refused."""
    with pytest.raises(CheckpointError):
        forged(good, lambda content: content.update(change))


@pytest.mark.parametrize("field", ["format", "digest", "leaves", "files", "memory"])
def test_missing_fields_are_refused(good, field):
    """A manifest without one of its fields is none."""
    with pytest.raises(CheckpointError):
        forged(good, lambda content: content.pop(field))


@pytest.mark.parametrize("text", [DEEP, "[]", "5", "", '{"a": NaN}', '{"a": ' + "1" * 5000 + "}", "\xff"])
def test_what_is_no_manifest_is_refused(good, text):
    """Deep nesting, other values, no JSON, no ASCII: refused, signed or not."""
    with pytest.raises(CheckpointError):
        spoiled(good, "manifest.json", lambda _: text.encode("latin-1"))
    body = f'{{"a": {text},\n "checksum": "'
    end = '"\n}\n'
    mark = hashlib.sha256((body + end).encode()).hexdigest()
    with pytest.raises(CheckpointError):
        spoiled(good, "manifest.json", lambda _: (body + mark + end).encode())


def test_a_huge_manifest_is_not_read(good, tmp_path):
    """A manifest of a terabyte (a sparse file) is refused by its size."""
    copy = Path(shutil.copytree(good, tmp_path / "a"))
    with (copy / "manifest.json").open("r+b") as stream:
        stream.truncate(10**12)

    with pytest.raises(CheckpointError, match="at most"):
        pr.load(copy)


def run_with(folder, iters):
    for iter in iters:
        pr.save(seal({"iter": torch.tensor(iter)}), folder / "checkpoints" / f"iter_{iter:08d}")
    point(folder, f"iter_{iters[-1]:08d}")
    return folder


def spoil(run, iter):
    (run / "checkpoints" / f"iter_{iter:08d}" / "state.safetensors").write_bytes(b"")


def test_newest_falls_back_and_says_why(tmp_path):
    """Damaged checkpoints are passed over, the newest first, each with its reason."""
    run = run_with(tmp_path, [1, 2, 3])
    spoil(run, 3)
    spoil(run, 2)
    found = newest(run, pr.load)

    assert "iter_00000001" == found.path.name
    assert ["iter_00000003", "iter_00000002"] == [Path(r.partition(":")[0]).parent.name for r in found.rejected]


def test_newest_follows_last_before_numbers(tmp_path):
    """A run that was taken back goes on from where `last` says; what lies ahead is only a last resort."""
    run = run_with(tmp_path, [1, 2, 3])
    point(run, "iter_00000002")

    assert "iter_00000002" == newest(run, pr.load).path.name
    spoil(run, 2)
    assert "iter_00000001" == newest(run, pr.load).path.name
    spoil(run, 1)
    assert "iter_00000003" == newest(run, pr.load).path.name
    spoil(run, 3)
    with pytest.raises(CheckpointError, match=r"(?s)iter_00000002.*iter_00000001.*iter_00000003"):
        newest(run, pr.load)


@pytest.mark.parametrize("text", ["../../etc", "/etc/passwd", "", "iter_5", "iter_00000002/../x", "\xff\xfe"])
def test_a_pointer_that_is_no_name_is_refused(tmp_path, text):
    """`last` holds a plain name; anything else leads nowhere, and `load` and `newest` say that they pass it over."""
    run = run_with(tmp_path, [1, 2])
    (run / "checkpoints" / "last").write_bytes(text.encode("latin-1"))

    with pytest.raises(CheckpointError, match="last"):
        pointed(run, "last")
    with pytest.warns(LostPointer, match="last: expected a name .* the highest iteration is taken for the last one"):
        assert 2 == int(pr.load(run)["iter"])
    found = newest(run, pr.load)
    assert ("iter_00000002", 1) == (found.path.name, len(found.rejected))


def test_a_run_is_loaded_from_its_last_checkpoint(tmp_path):
    """`pr.load(run)` means what `last` names, and the highest one while there is no pointer."""
    run = run_with(tmp_path, [1, 3, 2])

    assert 2 == int(pr.load(run)["iter"])
    (run / "checkpoints" / "last").unlink()
    assert 3 == int(pr.load(run)["iter"])


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_what_is_no_checkpoint_is_named(tmp_path, make):
    """Nothing, an empty folder, a file: the error names the place."""
    make(tmp_path / "a")
    with pytest.raises(CheckpointError, match="a: expected a checkpoint or the directory of a run"):
        pr.load(tmp_path / "a")


def test_a_checkpoint_under_another_ones_name_is_refused(tmp_path):
    """Whole, but not the one that its name says."""
    pr.save(STATE, path_of(tmp_path, 5))
    path_of(tmp_path, 5).rename(path_of(tmp_path, 7))

    with pytest.raises(CheckpointError, match="expected iteration 7 by its name, found 5"):
        pr.load(path_of(tmp_path, 7))


def test_counters_that_are_not_those_of_the_state_are_refused(good):
    """In a manifest whose checksum was made anew."""
    with pytest.raises(CheckpointError, match="expected iter 6, found 5"):
        forged(good, lambda content: content["counters"].update(iter=6))
