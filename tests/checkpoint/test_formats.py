"""Older formats: what an earlier version wrote is read by this one."""

from __future__ import annotations

from pathlib import Path

import pytest

import purerun as pr
from purerun.checkpoint.formats import NEWEST, brought_forward

# Written by the code that wrote format 1; never to be made anew.
FIRST = Path(__file__).with_name("format_1")


def test_a_checkpoint_of_the_first_format_loads_and_verifies():
    """All bytes are verified against its own digests, and the fields that it lacks are empty."""
    manifest = pr.checkpoint.read_manifest(FIRST)

    assert '"format": 1,' in (FIRST / "manifest.json").read_text()
    assert "360a2ba50c2ed518b8c987392506f87499d3ef731dd13f152cf315ea97d20665" == pr.digest(pr.load(FIRST))
    assert ({}, "", []) == (manifest.scores, manifest.created, manifest.changes)
    assert ({"lr": 0.1}, {"Log": {"bytes": 3}}) == (manifest.recipe, manifest.memory)


def test_it_is_written_in_the_newest_format(tmp_path):
    """With nothing lost."""
    old = pr.checkpoint.read_manifest(FIRST)
    new = pr.save(pr.load(FIRST), tmp_path / "a", recipe=old.recipe, memory=old.memory)

    assert f'"format": {NEWEST},' in (tmp_path / "a" / "manifest.json").read_text()
    assert (old.digest, old.leaves, old.program) == (new.digest, new.leaves, new.program)


@pytest.mark.parametrize("version", [0, NEWEST + 1, True, "1", None, 1.0])
def test_unknown_formats_are_refused(version):
    """With the formats that are known."""
    with pytest.raises(ValueError, match=f"expected a format from 1 to {NEWEST}"):
        brought_forward({"format": version})
