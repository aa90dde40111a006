"""Commands that run a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from purerun.cli import completed

CLOCKS = ("time", "data_time", "eta", "timestamp", "memory")


def lines(directory):
    """Read a log without what clocks say."""
    read = map(json.loads, (Path(directory) / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read]


def test_train_prints_the_last_validation(command, recipe):
    """One line of JSON on stdout; all else goes to stderr and to the run directory."""
    code, out, err = command("train", recipe)
    line = json.loads(out)

    assert 0 == code
    assert ["mode", "epoch", "iter", "accuracy", "digest"] == list(line)
    assert ("val", 2, 6) == (line["mode"], line["epoch"], line["iter"])
    assert f"{line['digest']}\n" == command("digest", "runs/tiny")[1]
    assert "finished at epoch 2, iteration 6; everything is in runs/tiny" in err


def test_test_prints_the_scores_of_the_last_checkpoint(command, recipe):
    """Or of the one that is named."""
    trained = json.loads(command("train", recipe, "--work-dir", "a")[1])
    code, out, err = command("test", recipe, "--work-dir", "a")
    named = command("test", recipe, "a/checkpoints/iter_00000003")[1]

    assert (0, "") == (code, err)
    assert {"mode": "test", "epoch": 2, "iter": 6, "accuracy": trained["accuracy"]} == json.loads(out)
    assert (1, 3) == (json.loads(named)["epoch"], json.loads(named)["iter"])


def test_settings_seed_and_device_make_the_recipe(command, recipe):
    """The seed is short for a setting, and another seed is another run."""
    first = json.loads(command("train", recipe, "--work-dir", "a", "--seed", "3")[1])
    second = json.loads(command("train", recipe, "--work-dir", "b", "--set", "seed=3", "--device", "cpu")[1])
    third = json.loads(command("train", recipe, "--work-dir", "c")[1])

    assert first == second
    assert first["digest"] != third["digest"]
    assert "seed = 3\n" in Path("a/recipe.toml").read_text()


def test_a_run_in_the_way_is_overwritten_when_asked(command, recipe):
    """The new one is as if the place had been empty."""
    first = command("train", recipe, "--set", "epochs=1")
    second = command("train", recipe, "--overwrite")

    assert (0, 0) == (first[0], second[0])
    assert second[1] == command("train", recipe, "--work-dir", "a")[1]
    assert lines("a") == lines("runs/tiny")


def test_a_run_in_the_way_of_one_that_goes_on_elsewhere(command, recipe):
    """It is refused in a line that says what to do, and what it says is done."""
    command("train", recipe, "--work-dir", "a")
    command("train", recipe, "--work-dir", "b", "--set", "epochs=1")
    words = ("train", recipe, "--work-dir", "b", "--resume", "a/checkpoints/iter_00000003")
    refused, done = command(*words), command(*words, "--overwrite")

    assert (2, "", 1) == (*refused[:2], len(refused[2].splitlines()))
    assert "b holds another run than a/checkpoints/iter_00000003; go on with it (--resume alone), replace" in refused[2]
    assert (0, command("digest", "a")[1]) == (done[0], command("digest", "b")[1])
    assert lines("a")[-1:] == lines("b")[-1:]


def test_a_finished_run_resumed_says_so(command, recipe):
    """And prints its result again."""
    first = command("train", recipe)
    again = command("train", recipe, "--resume")

    assert (0, first[1]) == again[:2]
    assert "finished at epoch 2" in again[2]


def test_resume_alone_takes_settings_of_the_first_go_as_a_change(command, recipe):
    """What differs is named, and how to say it."""
    command("train", recipe, "--set", "optimizer.lr=0.05", "--set", "epochs=1")
    code, out, err = command("train", recipe, "--resume", "--set", "epochs=2")
    repeated = command("train", recipe, "--resume", "--set", "epochs=2", "--set", "optimizer.lr=0.05")

    assert (2, "", 0) == (code, out, repeated[0])
    assert "was made by another recipe: optimizer.lr: 0.05 -> 0.1; go on as before with --set optimizer.lr=0.05" in err


def test_weights_can_be_loaded_from_another_run(command, recipe):
    """Counters begin anew."""
    command("train", recipe, "--work-dir", "a")
    code, out, err = command("train", recipe, "--work-dir", "b", "--load-from", "a", "--set", "epochs=1")

    assert (0, 3) == (code, json.loads(out)["iter"])
    assert "starting with the weights of a" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "a.py", "--resume"], ["train", "a.py", "--resume", "last"]),
        (["train", "--resume", "a.py"], ["train", "--resume", "last", "a.py"]),
        (["train", "--resume", "--seed", "1"], ["train", "--resume", "last", "--seed", "1"]),
        (["train", "a.py", "--resume", "runs/a"], ["train", "a.py", "--resume", "runs/a"]),
        (["train", "a.py", "--resume=runs/a"], ["train", "a.py", "--resume=runs/a"]),
        ([], []),
    ],
)
def test_resume_may_name_a_checkpoint(words, expected):
    """A recipe or another option is none."""
    assert expected == list(completed(words))
