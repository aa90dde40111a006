"""Mistakes of the user: exit code 2, one clear line on stderr, nothing on stdout, no traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from purerun.bind import ModelError
from purerun.checkpoint import SaveError
from purerun.cli.exits import Mistake, is_misfortune, is_mistake, told

CASES = [
    (("train",), 'Command "train" parameter RECIPE requires an argument'),
    (("trian", "tiny.py"), 'Unknown command "trian". Did you mean "train"?'),
    (("train", "tiny.py", "--learning-rate", "3"), "Unknown option: --learning-rate"),
    (("train", "tiny.py", "--seed", "x"), 'Invalid value for --seed: expected a whole number, got "x"'),
    (("train", "tiny.py", "--seed", "1.5"), 'Invalid value for --seed: expected a whole number, got "1.5"'),
    (("train", "tiny.py", "--work-dir", ""), "Invalid value for --work-dir: expected a path, got ''"),
    (("doctor", "tiny.py", "--iters", "2.5"), 'Invalid value for --iters: expected a whole number, got "2.5"'),
    (("doctor", "tiny.py", "--workers", "-1"), 'Invalid value "-1" for --workers'),
    (("schedule", "tiny.py", "--iters-per-epoch", "1.5"), "Invalid value for --iters-per-epoch: expected a whole numb"),
    (("train", "tiny.py", "--seed", "-1"), "seed=-1: 'seed' must be >= 0: -1"),
    (("train", "tiny.py", "--device", "gpu"), "device=gpu: expected a device such as 'cpu', 'cuda:0' or 'auto', got"),
    (("train", "none.py"), "none.py: there is no such file"),
    (("train", "tiny.py", "--set", "optimizer.lr"), "expected PATH=VALUE such as optimizer.lr=0.1, got 'optimizer.lr'"),
    (("train", "tiny.py", "--set", "optimizer.lr=abc"), "expected float for optimizer.lr, got 'abc'"),
    (
        ("train", "tiny.py", "--set", "optimizer.momentun=1"),
        "SGD has no 'momentun' (in optimizer",
    ),
    (("train", "tiny.py", "--set", "optimizer.lr=-1"), "optimizer.lr=-1: "),
    (("train", "tiny.py", "--set", "model.widht=3"), "Module has no 'widht' (in model.widht=3); did you mean 'width'?"),
    (("train", "tiny.py", "--set", "schedule.0.param=betas"), "expected a schedule of one of "),
    (("train", "tiny.py", "--set", "train.batch_size=0"), "train.batch_size=0: expected batch_size to be"),
    (
        ("train", "tiny.py", "--set", "train.batch_size=64", "--set", "train.drop_last=true"),
        "expected an epoch with at least one batch",
    ),
    (("train", "tiny.py", "--resume", "nowhere"), "nowhere: expected a checkpoint or the directory of a run"),
    (("train", "tiny.py", "--load-from", "nowhere"), "nowhere: expected a checkpoint or the directory of a run"),
    (("train", "tiny.py", "--resume", "--overwrite"), "expected one of --resume, --load-from and --overwrite"),
    (("train", "held.py", "--work-dir", "held"), "held holds a run; go on with it (--resume), replace it"),
    (("train", "tiny.py", "--work-dir", "tiny.py"), "tiny.py: cannot be written"),
    (("test", "tiny.py"), "runs/tiny: expected a checkpoint or the directory of a run, found nothing"),
    (("digest", "nowhere"), "nowhere: expected a checkpoint or the directory of a run, found nothing"),
    (("digest",), 'Command "digest" parameter PATH requires an argument'),
    (("schedule", "tiny.py", "--iters-per-epoch", "0"), 'Invalid value "0" for --iters-per-epoch'),
    (("schedule", "tiny.py", "--set", "schedule.0.param=betas"), "expected schedules of lr, "),
]


WRAPPERS = [
    ("pr.EMA(0.9), pr.Compile()", "expected no Compile around EMA: "),
    ("pr.Precision('float16', scale=-1)", "tiny.py:"),
    ("pr.Remat('nothing.*')", "expected modules that match 'nothing.*', got none"),
    ("pr.SkipNonFinite(2, limit=1)", "tiny.py:"),
    ("3", "tiny.py:"),
]


@pytest.mark.parametrize(("wrappers", "message"), WRAPPERS, ids=[wrappers for wrappers, _ in WRAPPERS])
def test_a_wrapper_that_makes_no_sense_is_a_mistake(command, wrappers, message):
    """Whether it is found when the recipe is read, or when it stands around the step."""
    text = Path("tiny.py").read_text().replace("epochs=2,", f"epochs=2,\n    wrappers=[{wrappers}],")
    Path("tiny.py").write_text(text)
    code, out, err = command("train", "tiny.py")

    assert (2, "", 1) == (code, out, len(err.splitlines()))
    assert err.startswith(f"purerun: {message}")


def test_a_step_that_cannot_be_compiled_is_a_mistake(command):
    """The message says why; no graph is made of it."""
    text = Path("tiny.py").read_text()
    text = text.replace("epochs=2,", "epochs=2,\n    wrappers=[pr.Compile('grad')],")
    text = text.replace("time.sleep(wait)", "assert model.training and batch['x'].sum().item() > -99")
    Path("tiny.py").write_text(text)
    code, out, err = command("train", "tiny.py")

    assert (2, "", 1) == (code, out, len(err.splitlines()))
    assert err.startswith("purerun: expected a step whose course does not depend on the values of tensors")
    assert re.search(r"it reads one, in loss, \S*tiny\.py:\d+; compute with torch\.where", err)


@pytest.mark.parametrize(("words", "message"), CASES, ids=[" ".join(words) for words, _ in CASES])
def test_a_mistake_is_told_in_one_line(command, words, message):
    """It says what came, and what to do."""
    Path("held").mkdir()
    Path("held/log.jsonl").write_text("{}\n")
    Path("held.py").write_text(Path("tiny.py").read_text())
    code, out, err = command(*words)

    assert (2, "") == (code, out)
    assert err.startswith(f"purerun: {message}")
    assert 1 == len(err.splitlines())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('model(batch["x"])', 'model(batch["image"])', "expected a batch with the key 'image'"),
        (
            'return nn.functional.cross_entropy(model(batch["x"]), batch["y"])',
            'return model(batch["x"])',
            "expected the loss to be a scalar",
        ),
        (
            'cross_entropy(model(batch["x"]), batch["y"])',
            'cross_entropy(model(batch["x"] / 0), batch["y"])',
            "expected a finite loss, got loss=nan",
        ),
    ],
)
def test_what_a_step_refuses_is_told_in_one_line(command, recipe, old, new, message):
    """A wrong key of a batch, a loss that is no scalar, a loss that is NaN."""
    text = Path(recipe).read_text()
    assert old in text
    Path(recipe).write_text(text.replace(old, new))
    code, out, err = command("train", recipe)

    assert (2, "") == (code, out)
    assert err.splitlines()[-1].startswith(f"purerun: {message}")
    assert "Traceback" not in err


def test_an_error_in_the_code_of_a_recipe_is_not_hidden(command, recipe):
    """It needs its traceback, and `main` ends with code 1."""
    text = Path(recipe).read_text()
    Path(recipe).write_text(text.replace("time.sleep(wait)", "int('ten')"))

    with pytest.raises(ValueError, match="invalid literal"):
        command("train", recipe)


def test_what_went_wrong_on_the_way_stands_in_the_line():
    """Notes say where: in which iteration, on which batch."""
    error = Mistake("it cannot\n  be done")
    error.add_note("in iteration 3")

    assert "it cannot be done (in iteration 3)" == told(error)


def raised(make):
    """Catch what a function raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        make()
    return caught.value


def test_which_errors_explain_themselves():
    """Those that purerun raises with a message for people; not those of torch or Python."""
    assert is_mistake(ModelError("no"))
    assert is_mistake(raised(lambda: __import__("purerun").Loader([], batch_size=1).open(0)))
    assert (False, True) == (is_mistake(SaveError("full")), is_misfortune(SaveError("full")))
    assert not is_mistake(raised(lambda: int("ten")))
    assert not is_mistake(raised(lambda: torch.zeros(2) @ torch.zeros(3)))


def test_a_full_disk_is_nobodys_mistake(command, recipe, monkeypatch):
    """It is said in a line, and the exit code is 1."""

    def full(*_, **__):
        raise SaveError("runs/tiny: cannot be written: no space")

    monkeypatch.setattr("purerun.sinks.checkpoints.save", full)
    code, out, err = command("train", recipe)

    assert (1, "") == (code, out)
    assert err.splitlines()[-1].startswith("purerun: runs/tiny: cannot be written: no space")


def test_a_run_that_failed_before_it_began_is_not_in_the_way(command, recipe):
    """Nothing of it could be lost: the mistake is mended and the command given again."""
    text = Path(recipe).read_text()
    Path(recipe).write_text(text.replace('batch["x"]', 'batch["image"]'))
    first = command("train", recipe)
    Path(recipe).write_text(text)

    assert (2, 0) == (first[0], command("train", recipe)[0])
