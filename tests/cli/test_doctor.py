"""`purerun doctor`: what it prints, how it exits, and that it leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FIVE = Path(__file__).parent.parent / "doctor" / "five_faults.py"

HELPER = '''\
"""An augmentation in a file of its own."""

import random

CHANCE = random.Random(0)


def jitter(sample):
    print("jittering")
    shift = CHANCE.gauss(0, 1)
    return {**sample, "x": sample["x"] + shift}
'''


@pytest.fixture
def jittering(recipe):
    """The small recipe, with an augmentation that it imports."""
    Path("jitters.py").write_text(HELPER)
    text = (
        Path(recipe).read_text().replace("import purerun as pr\n", "import purerun as pr\nfrom jitters import jitter\n")
    )
    Path(recipe).write_text(text.replace("shuffle=True)", "shuffle=True, transform=jitter)"))
    return recipe


def test_a_sound_recipe(command, recipe):
    """Exit code 0; one line for each part, and a last one that counts."""
    code, out, err = command("doctor", recipe, "--iters", "3", "--workers", "0")
    lines = out.splitlines()

    assert (0, "") == (code, err)
    assert ["train", "val", "model", "loss", "forward", "metrics.accuracy", "step", "run"] == [
        re.match(r"ok     ([\w.]+): ", line)[1] for line in lines[:-2]
    ]
    assert "no fault in 8 parts" == lines[-1]


def test_five_faults(command):
    """Exit code 1; each fault with its line, what the line says, why it matters and what to do."""
    code, out, err = command("doctor", FIVE, "--workers", "0")
    marks = [(n, text) for n, text in enumerate(FIVE.read_text().splitlines(), 1) if "# FAULT" in text]

    assert (1, "") == (code, err)
    assert [f"five_faults.py:{number}: {text.strip()}" in out for number, text in marks] == [True] * 5
    assert (5, 5) == (out.count("       why: "), out.count("       do:  "))
    assert 1 == out.count("       as above: ")  # the counter counts in evaluation too
    assert "skip   step: mend the model and the loss first\n" in out
    assert "5 faults in 10 parts" == out.splitlines()[-1]


def test_a_fault_in_a_file_that_the_recipe_imports(command, jittering):
    """It is named by its own file; what the code prints goes to stderr; nothing is left behind."""
    before = sorted(Path().rglob("*"))
    code, out, err = command("doctor", jittering, "--workers", "0")

    assert 1 == code
    assert f"jitters.py:{HELPER.splitlines().index('    shift = CHANCE.gauss(0, 1)') + 1}: shift = CHANCE.gauss" in out
    assert "jittering" not in out.splitlines()
    assert "jittering" in err.splitlines()
    assert before == sorted(Path().rglob("*"))


def test_notes_come_last(command, recipe):
    """They are no faults: exit code 0."""
    drawing = "shuffle=True, transform=lambda sample: {**sample, 'x': sample['x'] + torch.rand(())})"
    Path(recipe).write_text(Path(recipe).read_text().replace("shuffle=True)", drawing))
    code, out, _ = command("doctor", recipe, "--iters", "2", "--workers", "0")
    lines = out.splitlines()
    first = next(place for place, line in enumerate(lines) if not line)

    assert 0 == code
    assert all(line.startswith("ok     ") for line in lines[:first])
    assert lines[first + 1].startswith("note   train.transform")
    assert "no fault in 9 parts" == lines[-1]


def test_settings_are_taken(command, recipe):
    """As in `train`: here one that breaks a recipe that is sound without it."""
    sampled = Path(recipe).read_text().replace("def loss(model, batch, wait: float = 0.0):", "def loss(model, batch):")
    Path(recipe).write_text(sampled.replace("    time.sleep(wait)  # long enough to be interrupted\n", ""))
    code, out, _ = command("doctor", recipe, "--workers", "0", "--iters", "2", "--set", "metrics.accuracy.target=7")

    assert 1 == code
    assert "FAULT  metrics.accuracy" in out
    assert "expected a batch with an entry 7" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing.py",), "nothing.py: there is no such file"),
        (("tiny.py", "--set", "optimizer.momentun=1"), "SGD has no 'momentun'"),
        (("tiny.py", "--set", "device=cuda:99"), "expected a device that this machine has"),
        (("tiny.py", "--iters", "1"), 'Invalid value "1" for --iters'),
    ],
)
def test_a_recipe_that_cannot_be_loaded(command, words, message):
    """Exit code 2, and one clear line."""
    code, out, err = command("doctor", *words)

    assert (2, "") == (code, out)
    assert message in err
    assert 1 == len(err.splitlines())
