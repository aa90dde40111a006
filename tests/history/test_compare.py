"""Two checkpoints side by side."""

from __future__ import annotations

import shutil

import pytest

import purerun as pr
from purerun.checkpoint import CheckpointError, path_of
from purerun.history import compare
from tests.history.runs import WEIGHT, alter, ran


def test_the_same_state_is_the_same(run, tmp_path):
    """Wherever it lies."""
    found = compare(run, shutil.copytree(run, tmp_path / "copy"))

    assert (True, (), (), (), ()) == (found.same, found.counters, found.leaves, found.recipe, found.program)


def test_one_number_is_found(run, tmp_path):
    """In its leaf, with how much it differs."""
    other = shutil.copytree(run, tmp_path / "copy")
    alter(other, 12)
    found = compare(run, other)

    assert (False, ()) == (found.same, found.counters)
    assert [f"params/{WEIGHT}: 1 of 12 elements differ, by at most 0.5"] == list(map(str, found.leaves))


def test_counters_are_told_apart_from_leaves(run):
    """Which iteration it is explains the rest."""
    found = compare(path_of(run, 5), path_of(run, 10))

    assert ["epoch: 1 -> 3", "iter: 5 -> 10", "cursor: 16 -> 8"] == list(map(str, found.counters))
    assert {"epoch", "iter", "cursor", "seed", "fingerprint"}.isdisjoint(leaf.path for leaf in found.leaves)


def test_recipes_and_programs_are_compared(run):
    """Another momentum is in both; the number of epochs is no part of the program."""
    other = ran(run.parent / "other", "optimizer.momentum=0.5", "epochs=5")
    found = compare(run, other)

    assert ["epochs: 4 -> 5", "optimizer.momentum: 0.9 -> 0.5"] == sorted(map(str, found.recipe))
    assert [("-", "momentum=0.9"), ("+", "momentum=0.5")] == [
        (line[0], next(word.rstrip(",") for word in line.split() if word.startswith("momentum")))
        for line in found.program
    ]


def test_a_damaged_checkpoint_is_not_compared(run, tmp_path):
    """Nothing could be said of it."""
    other = shutil.copytree(run, tmp_path / "copy")
    file = path_of(other, 12) / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")

    with pytest.raises(CheckpointError, match="damaged"):
        compare(run, other)


def test_states_of_scripts_are_compared_too(tmp_path):
    """They hold no recipe and no program."""
    for name, iter in (("a", 3), ("b", 4)):
        pr.save(pr.testing.counted(iter=iter), tmp_path / name)
    found = compare(tmp_path / "a", tmp_path / "b")

    assert (["iter: 3 -> 4"], ()) == (list(map(str, found.counters)), found.recipe)
