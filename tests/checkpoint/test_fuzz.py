"""A run whose files are damaged in every way that a thousand tries find: noticed, and the older checkpoint is used."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import purerun as pr
from purerun.checkpoint import CheckpointError, LostPointer, newest, path_of, point, pointed, read_weights
from purerun.testing import counted

LEAVES = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "z": torch.zeros(2, 0)}
STATES = {n: counted(iter=n, params={**LEAVES, "n": torch.full((5,), float(n))}) for n in (1, 2)}
DIGESTS = {n: pr.digest(state) for n, state in STATES.items()}
FILES = ("manifest.json", "state.safetensors")
POINTERS = ("last", "best_accuracy")

# A try costs a few milliseconds; `--long` makes ten times as many.
_TIMES = max(1, settings.default.max_examples // 100)
MANY = settings(max_examples=900 * _TIMES, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(max_examples=150 * _TIMES, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def run():
    """A run with two checkpoints and two pointers to the second."""
    with TemporaryDirectory() as folder:
        for n, state in STATES.items():
            pr.save(state, path_of(folder, n), recipe={"lr": 0.1}, memory={"Log": {"bytes": 3}})
        for pointer in POINTERS:
            point(folder, "iter_00000002", pointer)
        yield Path(folder)


@st.composite
def damages(draw):
    """Draw a function from bytes to other bytes; places are fractions, so that they fit every file."""
    place, length = draw(st.integers(0, 2**20)), draw(st.integers(1, 64))
    kind = draw(st.sampled_from(["flip", "set", "cut", "add", "zeros", "lose", "repeat", "insert", "shift"]))
    byte, more = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=16))

    def damage(raw):
        at = place * len(raw) // (2**20 + 1)
        head, tail = raw[:at], raw[at:]
        return {
            "flip": head + bytes([tail[0] ^ byte]) + tail[1:],
            "set": head + more + tail[len(more) :],
            "cut": head,
            "add": raw + more,
            "zeros": head + bytes(min(length, len(tail))) + tail[length:],
            "lose": head + tail[length:],
            "repeat": head + tail[:length] + tail,
            "insert": head + more + tail,
            "shift": head + tail[1:] + tail[:1],
        }[kind]

    return damage


class Damaged:
    """A `with` block in which a file is damaged."""

    def __init__(self, file, damage):
        self.file, self.raw = file, file.read_bytes()
        self.content = damage(self.raw)
        assume(self.content != self.raw)

    def __enter__(self):
        self.file.write_bytes(self.content)
        return self.content

    def __exit__(self, *_):
        self.file.write_bytes(self.raw)


@MANY
@given(file=st.sampled_from(FILES), damage=damages())
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(run, file, damage):
    """Whatever the damage: never loaded, said with its name, and the older one found."""
    with Damaged(path_of(run, 2) / file, damage):
        with pytest.raises(CheckpointError, match="iter_00000002"):
            pr.load(run)
        found = newest(run, pr.load)

    assert ("iter_00000001", DIGESTS[1]) == (found.path.name, pr.digest(found.content))
    assert 1 == len(found.rejected)
    assert "iter_00000002" in found.rejected[0]


@SOME
@given(damage=damages())
def test_damaged_weights_are_noticed(run, damage):
    """Reading weights alone believes no more: what comes back is right, or nothing does."""
    with Damaged(path_of(run, 2) / "state.safetensors", damage):
        try:
            found = read_weights(path_of(run, 2))
        except CheckpointError:
            return

    assert all(torch.equal(STATES[2]["params", name], leaf) for name, leaf in found.items())
    assert set(STATES[2]["params"].names()) == set(found)


@SOME
@given(damage=damages())
def test_unverified_loading_crashes_on_no_damage(run, damage):
    """It believes values, and nothing else: shapes and names are right, or it is an error."""
    with Damaged(path_of(run, 2) / "state.safetensors", damage):
        try:
            state = pr.load(path_of(run, 2), verify=False)
        except CheckpointError:
            return
        kinds = {name: (leaf.dtype, leaf.shape) for name, leaf in state["params"].items()}
        assert {name: (leaf.dtype, leaf.shape) for name, leaf in STATES[2]["params"].items()} == kinds


@SOME
@given(pointer=st.sampled_from(POINTERS), damage=damages())
def test_a_damaged_pointer_leads_to_a_sound_checkpoint_or_nowhere(run, pointer, damage):
    """It is obeyed if it spells a name; otherwise it is as if there were none, and a warning says so."""
    with Damaged(run / "checkpoints" / pointer, damage) as content:
        text = content[:64].decode("ascii", errors="replace").strip()
        name = text if re.fullmatch(r"iter_\d{8,18}", text) else None
        try:
            assert name == pointed(run, pointer)
        except CheckpointError as error:
            assert name is None
            assert pointer in str(error)  # noqa: PT017 - which of two things happens depends on the damage
        found = newest(run, pr.load)
        try:
            loaded = digest_of(run)
        except CheckpointError:
            loaded = None

    there = {"iter_00000001": DIGESTS[1], "iter_00000002": DIGESTS[2]}
    assert loaded == (there.get(name) if pointer == "last" and name else DIGESTS[2])
    assert found.path.name in there
    assert pr.digest(found.content) == there[found.path.name]


def digest_of(run):
    """Load it as a person does who does not look at warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LostPointer)
        return pr.digest(pr.load(run))


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def lost(copy, file):
    (path_of(copy, 2) / file).unlink()


def emptied(copy, file):
    (path_of(copy, 2) / file).write_bytes(b"")


def of_the_other(copy, file):
    shutil.copy(path_of(copy, 1) / file, path_of(copy, 2) / file)


def a_folder(copy, file):
    (path_of(copy, 2) / file).unlink()
    (path_of(copy, 2) / file).mkdir()


def a_link(copy, file):
    (path_of(copy, 2) / file).rename(copy.parent / file)
    (path_of(copy, 2) / file).symlink_to(copy.parent / file)


def a_second_name(copy, file):
    (path_of(copy, 2) / file).rename(path_of(copy, 2) / "other")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [lost, emptied, of_the_other, a_folder, a_link, a_second_name])
def test_files_that_are_not_what_they_were_are_noticed(copy, file, harm):
    """Lost, empty, of the other checkpoint, a folder, a link to the right one, renamed."""
    harm(copy, file)
    with pytest.raises(CheckpointError, match="iter_00000002"):
        pr.load(copy)

    assert DIGESTS[1] == pr.digest(newest(copy, pr.load).content)


@pytest.mark.parametrize("instead", ["nothing", "file", "empty folder", "broken link"])
def test_a_checkpoint_that_is_no_folder_is_noticed(copy, instead):
    """`last` still names it."""
    place = path_of(copy, 2)
    shutil.rmtree(place)
    if instead == "file":
        place.write_bytes(b"hello")
    if instead == "empty folder":
        place.mkdir()
    if instead == "broken link":
        place.symlink_to(copy / "nowhere")
    with pytest.raises(CheckpointError, match="iter_00000002"):
        pr.load(copy)

    assert DIGESTS[1] == pr.digest(newest(copy, pr.load).content)


@pytest.mark.parametrize("instead", ["nothing", "folder", "link", "empty"])
@pytest.mark.parametrize("pointer", POINTERS)
def test_a_pointer_that_is_no_file_leads_to_a_sound_checkpoint(copy, pointer, instead):
    """It is as if there were none; the newest is found."""
    place = copy / "checkpoints" / pointer
    place.unlink()
    if instead == "folder":
        place.mkdir()
    if instead == "link":
        (copy / "text").write_text("iter_00000001\n")
        place.symlink_to(copy / "text")
    if instead == "empty":
        place.touch()

    assert DIGESTS[2] == pr.digest(newest(copy, pr.load).content)


def test_when_all_are_damaged_each_is_named(copy):
    """And nothing is loaded."""
    for n in STATES:
        emptied_file = path_of(copy, n) / "state.safetensors"
        emptied_file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)expected a checkpoint that can be believed;.*00002.*00001"):
        newest(copy, pr.load)
