"""The digits recipe does what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

import purerun as pr
from purerun import recipe as room
from purerun.recipe import load, override

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "digits.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The whole run: the recipe, and its last state."""
    recipe = load(RECIPE)
    return recipe, room.train(recipe, tmp_path_factory.mktemp("digits")).state


def test_it_learns_the_digits(trained):
    """At least 98 of 100 test images; a few of them are hard for people too."""
    recipe, state = trained

    assert float(room.test(recipe, state)["accuracy"]) >= 0.98


def test_it_is_the_same_with_workers_and_after_a_stop(trained, tmp_path):
    """Augmentation and dropout are functions of the seed and the place: workers and a stop change nothing."""
    recipe, _ = trained
    short = override(recipe, ["epochs=2"])
    whole = room.train(short, tmp_path / "whole").state
    calls = iter(range(30))
    room.train(short, tmp_path / "stopped", stop=lambda: next(calls) == 29)
    workers = override(short, ["train.workers=2"])
    resumed = room.train(workers, tmp_path / "stopped", resume="last", asked=["train.workers"]).state

    assert pr.digest(whole) == pr.digest(resumed)
