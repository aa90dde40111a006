"""Commands that only look."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import purerun
import purerun as pr
from purerun.recipe import load, text


def test_help_does_not_import_torch():
    """Nor anything else that takes long."""
    script = "import sys, purerun.cli as cli; code = cli.run(['--help']); print(code, 'torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "0 False" == ended.stdout.splitlines()[-1]
    for name in ("train", "test", "show", "schedule", "digest"):
        assert re.search(rf"^\W+{name} ", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("schedule", "--help"), ()])
def test_help_goes_to_stdout(command, words):
    """It was asked for, so it is a result; nothing is wrong."""
    code, out, err = command(*words)

    assert (0, "") == (code, err)
    assert out.startswith("Usage: purerun")


def test_the_version_is_told(command):
    """As one line."""
    assert (0, f"purerun {purerun.__version__}\n", "") == command("--version")


def test_show_prints_the_resolved_recipe(command, recipe):
    """With its changes; it is TOML."""
    code, out, err = command("show", recipe, "--set", "optimizer.lr=0.05", "--set=epochs=5")

    assert (0, "") == (code, err)
    assert (0.05, 5) == (tomllib.loads(out)["optimizer"]["lr"], tomllib.loads(out)["epochs"])
    assert text(load(recipe)) == command("show", recipe)[1]


def test_the_schedule_is_what_a_run_uses(command, recipe):
    """One number an iteration, those of the log of a real run."""
    code, out, err = command("schedule", recipe, "--json")
    module = load(recipe).module()
    states = load(recipe).train_loop(module)(load(recipe).init(module), load(recipe).train)

    assert (0, "") == (code, err)
    assert {"lr": [float(state["metrics", "lr"]) for state in states]} == json.loads(out)


WINDOWS = {
    "iterations": "pr.Accumulate(2)",
    "updates": 'pr.Accumulate(2, schedule="update")',
    "updates by epoch": 'pr.Accumulate(2, schedule="update", window="epoch"), pr.EMA(0.9)',
}


def replaced(recipe, *pairs):
    """Write the recipe with some texts in the place of others."""
    text = Path(recipe).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    Path(recipe).write_text(text)


def reported(recipe, *names):
    """List what a real run reports of each batch."""
    value = load(recipe)
    module = value.module()
    states = list(value.train_loop(module)(value.init(module), value.train))
    return {name: [float(state["metrics", name]) for state in states] for name in names}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_the_schedule_counts_what_accumulate_counts(command, recipe, window):
    """Iterations, or updates of the optimizer: the numbers of a real run."""
    replaced(recipe, ("epochs=2,", f"epochs=3,\n    wrappers=[{window}],"))
    code, out, err = command("schedule", recipe, "--json")

    assert (0, "") == (code, err)
    assert reported(recipe, "lr") == json.loads(out)


TWO = """
    steps={
        "one": pr.Part(loss=loss, optimizer=pr.optim.SGD(lr=0.1), schedule=[pr.schedule.Linear(0.1, end=5, by="iter")]),
        "two": pr.Part(loss=loss, optimizer=pr.optim.Adam(lr=0.2), schedule=[pr.schedule.Step(1, gamma=0.5)]),
    },
"""
ONE = (
    "    loss=loss,\n",
    "    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9),\n",
    '    schedule=[pr.schedule.Linear(0.5, end=3, by="iter"), pr.schedule.Step(1, gamma=0.5)],\n',
)


def test_the_schedules_of_several_steps_have_their_names(command, recipe):
    """A number for each batch, at the iteration that the step makes of it."""
    replaced(recipe, *((each, "") for each in ONE), ("epochs=2,", f"epochs=2,{TWO}"))
    code, out, err = command("schedule", recipe, "--json")

    assert (0, "") == (code, err)
    assert reported(recipe, "one.lr", "two.lr") == json.loads(out)
    assert "epoch\titer\tone.lr\ttwo.lr" == command("schedule", recipe)[1].splitlines()[0]


def test_when_an_alternate_calls_its_steps_is_not_guessed(command, recipe):
    """A schedule by iteration is refused then, with the place where it can be seen."""
    alternate = "    alternate=lambda steps, state, batch: steps['two'](steps['one'](state, batch), batch),\n"
    replaced(recipe, *((each, "") for each in ONE), ("epochs=2,", f"epochs=2,{TWO}{alternate}"))
    code, out, err = command("schedule", recipe)

    assert (2, "", 1) == (code, out, len(err.splitlines()))
    assert "step 'one'" in err


def test_the_length_of_an_epoch_can_be_given(command, recipe):
    """For data that is not here, or does not say."""
    code, out, _ = command("schedule", recipe, "--json", "--iters-per-epoch", "5", "--set", "schedule.0.end=2")

    assert 0 == code
    assert [0.05] + [0.1] * 4 + [0.05] * 5 == json.loads(out)["lr"]


def test_the_schedule_is_a_table_without_json(command, recipe):
    """A line for each epoch."""
    code, out, _ = command("schedule", recipe)

    assert 0 == code
    assert ["epoch\titer\tlr", "0\t0\t0.05", "1\t3\t0.05"] == out.splitlines()


def test_the_length_of_an_unknown_epoch_is_asked_for(command, recipe):
    """An endless order has none."""
    text = Path(recipe).read_text().replace("pr.schedule.Step(1, gamma=0.5)", "")
    Path(recipe).write_text(text.replace("shuffle=True", "order=pr.data.Infinite()").replace("epochs=2", "iters=4"))
    code, out, err = command("schedule", recipe, "--json")

    assert (2, "") == (code, out)
    assert "say it with --iters-per-epoch" in err


def test_a_digest_stands_alone_on_its_line(command, recipe, tmp_path):
    """64 hex digits, of a checkpoint and of a run alike."""
    step = load(recipe).train_step(load(recipe).module())
    state = step.init(seed=0)
    pr.save(state, tmp_path / "run" / "checkpoints" / "iter_00000000")

    assert (0, pr.digest(state) + "\n", "") == command("digest", tmp_path / "run" / "checkpoints" / "iter_00000000")
    assert (0, pr.digest(state) + "\n", "") == command("digest", tmp_path / "run")


def test_the_digest_of_a_damaged_checkpoint_is_not_told(command, recipe, tmp_path):
    """What is printed is what the bytes say."""
    pr.save(load(recipe).init(load(recipe).module()), tmp_path / "a")
    file = tmp_path / "a" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    code, out, err = command("digest", tmp_path / "a")

    assert (2, "") == (code, out)
    assert "damaged" in err


def test_the_schedule_of_a_sweep_is_that_of_each_member(command, recipe):
    """Under the names that its log has."""
    swept = "epochs=2,\n    engine='func',\n    wrappers=[pr.Vmap(2, hyper={'lr': [1.0, 0.5]})],"
    Path(recipe).write_text(Path(recipe).read_text().replace("epochs=2,", swept))
    code, out, err = command("schedule", recipe, "--json")
    _, alone, _ = command("schedule", recipe, "--json", "--set", "wrappers=[]", "--set", "optimizer.lr=0.5")

    assert (0, "") == (code, err)
    found = json.loads(out)
    assert ["lr[0]", "lr[1]"] == list(found)
    assert found["lr[1]"] == json.loads(alone)["lr"]
    assert found["lr[0]"] == pytest.approx([2 * value for value in found["lr[1]"]])
