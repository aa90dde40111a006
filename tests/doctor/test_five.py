"""Five faults in one recipe: all are found at once, and each by its line."""

from __future__ import annotations

import pytest

import purerun as pr
from purerun.doctor import examination, examine
from purerun.recipe import load
from tests.doctor.marks import HERE, marked, pointed

PARTS = {
    "global generator in an augmentation": "train.batch_transform",
    "unseekable loader": "train",
    "Python counter in a module": "model",
    "metric not merged": "metrics.share",
    "hook with hidden memory": "hooks.0",
}


@pytest.fixture(scope="module")
def findings():
    """What the doctor says of the five faults."""
    return examine(load(HERE / "five_faults.py"))


def test_all_five_are_found(findings):
    """One finding each, at the line that is marked."""
    marks = marked("five_faults.py")

    assert {*PARTS} == {*marks}
    assert {PARTS[mark]: place for mark, place in marks.items()} == {each.part: pointed(each) for each in findings}
    assert 5 == len(findings)


def test_a_finding_explains_itself(findings):
    """What is wrong, what the line says, and what to do."""
    noise = next(each for each in findings if each.part == "train.batch_transform")

    assert "fault" == noise.kind
    assert "draws from `RNG`, a generator that no key reaches" in noise.message
    assert noise.source.startswith('noise = RNG.normal(size=batch["point"].shape)')
    assert "draw from the `chance`" in noise.remedy


def test_the_words_say_what_is_remembered(findings):
    """The names are those of the code."""
    told = {each.part: each.message for each in findings}

    assert "`Net.calls`" in told["model"]
    assert "`Cool.times`" in told["hooks.0"]
    assert "Points cannot begin in the middle of an epoch (InexactResume)" in told["train"]
    assert "`merge` forgets" in told["metrics.share"]


def test_the_mended_recipe_passes():
    """The same run without them: nothing to say, and every part was examined."""
    every = examination(load(HERE / "mended.py"))

    assert [] == [finding for each in every for finding in each.findings]
    assert [] == [each.part for each in every if each.skipped]
    assert {*PARTS.values(), "train.dataset", "val", "loss", "forward", "step", "run"} == {each.part for each in every}


def test_the_recipes_are_the_same_run():
    """The good twin is a twin: same model, same data, so that only the faults make the difference."""
    faulty, good = (load(HERE / name) for name in ("five_faults.py", "mended.py"))

    assert good.epochs == faulty.epochs
    assert pr.digest(good.init(good.module())["params"]) == pr.digest(faulty.init(faulty.module())["params"])
