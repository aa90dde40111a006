"""Commands that run a recipe, and what stops them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

import purerun as pr
from purerun.cli import completed

CLOCKS = ("time", "data_time", "eta", "timestamp", "memory")

# Slow enough that a signal comes in the middle: 120 iterations of 30 ms.
SLOW = ("--set", "epochs=40", "--set", "loss.wait=0.03", "--set", "checkpoint=7 iters")


def lines(directory):
    """Read a log without what clocks say."""
    read = map(json.loads, (Path(directory) / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read]


@pytest.fixture
def slow(recipe):
    """A recipe whose loss can wait."""
    text = Path(recipe).read_text()
    Path(recipe).write_text("import functools\n" + text.replace("loss=loss", "loss=functools.partial(loss, wait=0.0)"))
    return recipe


def under_way(process, directory, count=6):
    """Wait until a run has written some lines of its log."""
    log = Path(directory) / "log.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") >= count:
            return
        if process.poll() is not None:
            pytest.fail(f"ended early: {process.communicate()}")
        time.sleep(0.05)
    pytest.fail("did not begin")


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


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_and_resume_is_the_run_in_one_go(command, start, slow, workers):
    """The signal goes to the whole group, as a terminal sends it; workers outlive it."""
    more = ("--set", f"train.workers={workers}")
    stopped = start("train", slow, *SLOW, *more)
    under_way(stopped, "runs/tiny")
    os.killpg(stopped.pid, signal.SIGINT)
    out, err = stopped.communicate(timeout=60)

    assert (130, "") == (stopped.returncode, out)
    assert "go on with --resume" in err
    assert "Traceback" not in err
    done = int(pr.load("runs/tiny")["iter"])
    assert 0 < done < 120

    # Pauses are no part of what is computed.
    fast = ("--set", "epochs=40", "--set", "checkpoint=7 iters", "--set", "loss.wait=0.0", *more)
    resumed = command("train", slow, *fast, "--resume")
    whole = command("train", slow, *fast, "--work-dir", "whole")
    assert (0, 0) == (resumed[0], whole[0])
    assert whole[1] == resumed[1]
    assert lines("whole") == lines("runs/tiny")


def test_sigterm_saves_and_ends_with_its_code(start, slow):
    """As a scheduler takes a job away."""
    process = start("train", slow, *SLOW)
    under_way(process, "runs/tiny")
    process.terminate()
    _, err = process.communicate(timeout=60)
    log = lines("runs/tiny")

    assert 143 == process.returncode
    assert "Traceback" not in err
    assert max(line["iter"] for line in log) == int(pr.load("runs/tiny")["iter"])


def test_a_second_signal_ends_at_once(start, slow):
    """Without waiting for an iteration that may never end."""
    text = Path(slow).read_text()
    Path(slow).write_text(text.replace("time.sleep(wait)", "open('inside', 'w').close(); time.sleep(wait)"))
    process = start("train", slow, "--set", "loss.wait=600")
    while not Path("inside").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = next(line for line in process.stderr if "stopping after this iteration" in line)
    process.send_signal(signal.SIGINT)

    assert "once more stops at once" in told
    assert 130 == process.wait(timeout=30)


def test_a_signal_before_the_first_iteration_ends_at_once(start, recipe):
    """There is nothing to save yet."""
    text = Path(recipe).read_text()
    Path(recipe).write_text("import time\nopen('inside', 'w').close()\ntime.sleep(600)\n" + text)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start("show", recipe)
        while not Path("inside").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        Path("inside").unlink()

        assert code == process.returncode
        assert "Traceback" not in err


def test_a_mistake_ends_a_process_with_two(start, recipe):
    """As `main` says it to the shell."""
    process = start("train", recipe, "--set", "optimizer.lr=abc")
    out, err = process.communicate(timeout=60)

    assert (2, "", "purerun: expected float for optimizer.lr, got 'abc'\n") == (process.returncode, out, err)


def test_an_error_in_a_recipe_ends_a_process_with_one(start, recipe):
    """With its traceback: it is a program that failed."""
    text = Path(recipe).read_text()
    Path(recipe).write_text(text.replace("time.sleep(wait)", "1 / 0"))
    process = start("train", recipe)
    out, err = process.communicate(timeout=60)

    assert (1, "") == (process.returncode, out)
    assert "ZeroDivisionError" in err
