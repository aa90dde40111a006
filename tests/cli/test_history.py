"""Commands that look at a run as a history: what they print, and how they end."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

import purerun as pr
from purerun.checkpoint import path_of, read_manifest
from tests.cli.test_runs import lines

ROOT = Path(__file__).parent.parent.parent
RUN = Path("runs/tiny")
WEIGHT = "layers.0.weight"


@pytest.fixture
def trained(command):
    """A run of six iterations, saved after three and six."""
    assert 0 == command("train", "tiny.py")[0]
    return command


def alter(run, iter):
    """Change one weight of a checkpoint, and sign its manifest again."""
    place = path_of(run, iter)
    state, manifest = pr.load(place), read_manifest(place)
    name = next(name for name in state["params"].names() if name.endswith("0.weight"))
    weight = state["params", name].clone()
    weight.view(-1)[1] += 0.5
    kept = {field: getattr(manifest, field) for field in ("recipe", "parent", "memory", "changes")}
    pr.save(state.replace(params={name: weight}), place, **kept)
    return name


def words_of(line):
    """Take the words of a command that was printed."""
    name, *words = shlex.split(line)
    assert "purerun" == name
    return words


# ---------------------------------------------------------------------- show
def test_show_tells_what_a_run_is(trained):
    """Its settings, its checkpoints, where it comes from; every line fits a terminal."""
    code, out, err = trained("show", RUN)
    digest = read_manifest(path_of(RUN, 6)).digest

    assert (0, "") == (code, err)
    assert out.startswith("runs/tiny: a run with 2 good checkpoints, ")
    for text in ("model      Net(width=4, dropout=0.5)", "SGD(lr=0.1, momentum=0.9", "batch_size=8, shuffle=True"):
        assert text in out
    (row,) = [line.split() for line in out.splitlines() if line.split()[:2] == ["6", "2"]]
    assert [digest[:8], read_manifest(path_of(RUN, 3)).digest[:8], "last"] == [*row[6:8], row[-1]]
    assert f"accuracy={read_manifest(path_of(RUN, 6)).scores['accuracy']:.6g}" in row
    assert "begins anew" in out
    assert max(map(len, out.splitlines())) <= 120


def test_show_tells_changes_pointers_and_damage(command):
    """What was changed when the run went on; which checkpoint is the best; which is no good."""
    command("train", "tiny.py", "--set", 'best=("accuracy",)')
    command("train", "tiny.py", "--resume", "--set", "epochs=4", "--set", 'best=("accuracy",)')
    (path_of(RUN, 6) / "manifest.json").unlink()
    code, out, _ = command("show", RUN)

    assert 0 == code
    assert "a run with 3 good checkpoints, " in out
    assert ", and 1 damaged" in out
    assert "at iteration 6: epochs 2 -> 4" in out
    assert "best_accuracy" in out
    assert "damaged: " in out
    assert "damaged" == next(line for line in out.splitlines() if line.split()[:2] == ["6", "-"]).split()[6]


def test_show_verifies_every_byte_only_when_asked(trained):
    """Sizes are looked at in any case."""
    file = path_of(RUN, 3) / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")

    assert "2 good checkpoints" in trained("show", RUN)[1]
    assert "1 good checkpoints" in trained("show", RUN, "--verify")[1]
    assert 0 == trained("show", path_of(RUN, 3))[0]
    assert (2, "") == trained("show", path_of(RUN, 3), "--verify")[:2]


def test_show_tells_what_a_checkpoint_is(trained):
    """Counters, digests, leaves by group, the recipe and the program."""
    code, out, err = trained("show", path_of(RUN, 3))
    manifest = read_manifest(path_of(RUN, 3))

    assert (0, "") == (code, err)
    for text in (
        "counters     epoch 1, iter 3, cursor 0, seed 0",
        f"digest       {manifest.digest}",
        f"fingerprint  {manifest.fingerprint}",
        "parent       none",
        f"torch {manifest.versions['torch']}",
        '[optimizer]\nclass = "purerun.optim.SGD"',
        "BatchNorm1d(4",
    ):
        assert text in out
    assert ["layers.0.weight", "float32", "4x3", "48", "B"] in [line.split() for line in out.splitlines()]
    assert ["params", "6", "leaves", "136", "B"] in [line.split() for line in out.splitlines()]


def test_show_runs_no_recipe(trained):
    """What a run is, its own files say; nothing in them is code."""
    Path("tiny.py").write_text("raise SystemExit")

    assert (0, "") == trained("show", RUN)[::2]
    assert (0, "") == trained("show", path_of(RUN, 3))[::2]


# ---------------------------------------------------------------------- diff, bisect
def test_diff_says_the_same(trained):
    """A run by its last checkpoint."""
    assert (0, "the same: every bit of both states\n", "") == trained("diff", RUN, path_of(RUN, 6))


def test_diff_lists_counters_leaves_recipes_and_programs(trained):
    """In this order; that they differ is a result, and no failure."""
    trained("train", "tiny.py", "--work-dir", "b", "--set", "optimizer.lr=0.2", "--set", "epochs=1")
    code, out, err = trained("diff", RUN, "b")
    heads = [line for line in out.splitlines() if not line.startswith(" ")]

    assert (0, "") == (code, err)
    assert ["not the same", "counters", "leaves", "recipes", "programs"] == heads
    assert "  iter: 6 -> 3\n" in out
    assert "  hyper/lr: 1 of 1 elements differ, by at most 0.1\n" in out
    assert "  optimizer.lr: 0.1 -> 0.2\n" in out
    assert "  + optimizer: SGD(groups=(), lr=0.2" in out


def test_bisect_finds_the_first_iteration_and_leaf(trained):
    """The schedule of one of them falls a step later."""
    trained("train", "tiny.py", "--work-dir", "b", "--set", "schedule.1.gamma=0.9")
    code, out, _ = trained("bisect", RUN, "b", "--recipe", "tiny.py")

    assert 0 == code
    assert out.startswith("runs/tiny and b differ from iteration 4 on, first in ")
    assert "\nleaves\n" in out
    assert f"  params/{WEIGHT}: " in out


def test_bisect_names_the_run_that_was_changed(trained):
    """And between which iterations."""
    shutil.copytree(RUN, "b")
    alter("b", 6)
    code, out, _ = trained("bisect", RUN, "b", "--recipe", "tiny.py")

    assert 0 == code
    assert "the checkpoint of b at iteration 6 does not follow from its own between iteration 3 and 6" in out
    assert f"it differs first in params/{WEIGHT}" in out


def test_bisect_says_that_runs_agree(trained):
    """As far as both go."""
    shutil.copytree(RUN, "b")

    assert (0, "runs/tiny and b agree up to iteration 6, as far as both go\n") == trained(
        "bisect", RUN, "b", "--recipe", "tiny.py"
    )[:2]


def test_checkpoints_elsewhere_are_shown_and_compared(trained):
    """By their URL."""
    state, manifest = pr.load(path_of(RUN, 6)), read_manifest(path_of(RUN, 6))
    pr.save(state, "memory://history/a", recipe=manifest.recipe)

    assert (0, "the same: every bit of both states\n", "") == trained("diff", RUN, "memory://history/a")
    assert f"digest       {manifest.digest}" in trained("show", "memory://history/a")[1]


# ---------------------------------------------------------------------- verify
def test_verify_passes_a_good_run(trained):
    """A line for each segment."""
    code, out, err = trained("verify", RUN)

    assert (0, "") == (code, err)
    assert [["seed", "->", "3", "agrees"], ["3", "->", "6", "agrees"], ["all", "2", "agree"]] == [
        line.split() for line in out.splitlines()
    ]


def test_verify_names_an_altered_checkpoint(trained):
    """Its leaf, and what shows that it was altered; that is no mistake of the user."""
    alter(RUN, 3)
    code, out, err = trained("verify", RUN)

    assert (1, "") == (code, err)
    assert f"DIFFERS  params/{WEIGHT}: 1 of 12 elements differ, by at most 0.5; only this checkpoint was altered" in out
    assert "1 of 2 do not agree" == out.splitlines()[-1]


def test_verify_takes_some_segments(trained):
    """Chosen by a seed."""
    found = {trained("verify", RUN, "--samples", "1", "--seed", seed)[1] for seed in range(8)}

    assert {"seed", "3"} == {out.split()[0] for out in found}
    assert all(out.endswith("all 1 agree\n") for out in found)


def test_verify_of_a_run_with_other_settings_says_which(command):
    """They are set again."""
    command("train", "tiny.py", "--set", "optimizer.lr=0.05", "--set", "epochs=1")
    code, out, err = command("verify", RUN)

    assert (0, "all 1 agree") == (code, out.splitlines()[-1])
    assert (
        "purerun: runs/tiny is computed with optimizer.lr=0.05, epochs=1, as it was made; tiny.py says otherwise\n"
        == err
    )


def test_verify_says_what_it_cannot_check(trained):
    """The weights that a run began with are gone; then nobody may take it for checked."""
    trained("train", "tiny.py", "--work-dir", "b", "--load-from", RUN)
    shutil.rmtree(RUN)
    code, out, err = trained("verify", "b", "--recipe", "tiny.py")
    first, *rest = out.splitlines()

    assert (1, "") == (code, err)
    assert f"cannot be checked  the run began with the weights of {RUN.absolute()}, which cannot be read" in first
    assert ["         3 -> 6           agrees", "1 of 2 cannot be checked"] == rest
    alter("b", 6)
    assert (
        "1 of 2 do not agree, 1 of 2 cannot be checked"
        == trained("verify", "b", "--recipe", "tiny.py")[1].splitlines()[-1]
    )


# ---------------------------------------------------------------------- rewind, fork
def test_rewind_prints_the_command_that_goes_on(trained):
    """Its end is that of the run that was never taken back; so is its log."""
    shutil.copytree(RUN, "kept")
    code, out, err = trained("rewind", RUN, "--at", 4)
    stands = trained("digest", RUN)[1].strip()
    went_on = trained(*words_of(out))

    assert (0, 0) == (code, went_on[0])
    assert f"runs/tiny stands at iteration 4 again, digest {stands}" in err
    assert trained("digest", "kept") == trained("digest", RUN)
    assert lines("kept") == lines(RUN)


def test_fork_prints_the_command_that_goes_on(trained):
    """With the settings that make the recipe what it is."""
    code, out, err = trained(
        "fork", RUN, "--at", 4, "--work-dir", "b c", "--set", "optimizer.lr=0.3", "--set", "epochs=3"
    )
    words = words_of(out)
    went_on = trained(*words)

    assert [
        "train",
        "tiny.py",
        "--work-dir",
        "b c",
        "--set",
        "optimizer.lr=0.3",
        "--set",
        "epochs=3",
        "--resume",
    ] == words
    assert (0, 0, 9) == (code, went_on[0], json.loads(went_on[1])["iter"])
    assert "b c begins at iteration 4 of runs/tiny" in err
    assert 0 == trained("verify", "b c", "--recipe", "tiny.py")[0]
    assert "forked at iteration 4, from the state " in trained("show", "b c")[1]


# ---------------------------------------------------------------------- why, seen
def test_why_lists_samples_and_losses(trained):
    """The loss of the whole batch is the one of the log."""
    trained("train", "tiny.py", "--work-dir", "b", "--set", "log.count=1")
    logged = next(line["loss"] for line in lines("b") if line["iter"] == 5)
    code, out, err = trained("why", RUN, "--at", 5)
    head, report, note, names, *rows = out.splitlines()
    losses = [float(row.split()[2]) for row in rows]

    assert (0, "") == (code, err)
    assert "iteration 5, epoch 1: 8 samples" == head
    assert f"the whole batch in training: lr 0.05  loss {logged:.6g}" == report
    assert "evaluation mode (no dropout, running statistics)" in note
    assert ["sample", "position", "loss"] == names.split()
    assert (set(range(8, 16)), sorted(losses, reverse=True)) == ({int(row.split()[1]) for row in rows}, losses)


def test_seen_lists_iterations(trained):
    """One an epoch, for a sample of a shuffled set."""
    code, out, err = trained("seen", RUN, "--sample", 7)
    head, *rows = out.splitlines()

    assert (0, "") == (code, err)
    assert ["epoch", "iter", "position"] == head.split()
    assert ["0", "1"] == [row.split()[0] for row in rows]
    for row in rows:
        epoch, iter, position = map(int, row.split())
        assert 7 == int(pr.data.Shuffle().indices(0, epoch, position, position + 1, 20))
        assert 3 * epoch + position // 8 + 1 == iter


def test_a_sample_that_was_never_seen_is_told(command):
    """That is a result too."""
    command("train", "tiny.py", "--set", "iters=1", "--set", "epochs=None")
    unseen = int(pr.data.Shuffle().indices(0, 0, 19, 20, 20))

    assert (0, f"sample {unseen} was never trained on\n") == command("seen", RUN, "--sample", unseen)[:2]


# ---------------------------------------------------------------------- which recipe, mistakes
def test_the_recipe_is_found_by_the_name_that_the_user_types(trained):
    """Here, or in `recipes/`; nothing of a run names it."""
    assert 0 == trained("verify", f"{RUN}/")[0]
    Path("recipes").mkdir()
    Path("tiny.py").rename("recipes/tiny.py")
    assert 0 == trained("verify", RUN)[0]
    Path("recipes/tiny.py").rename("other.py")
    code, out, err = trained("verify", RUN)

    assert (2, "") == (code, out)
    expected = "expected the recipe of runs/tiny in tiny.py or recipes/tiny.py, found neither; give it with --recipe"
    assert f"purerun: {expected}\n" == err


def test_a_recipe_that_cannot_be_made_the_run_s_is_refused(trained):
    """With what differs."""
    file = Path("tiny.py")
    file.write_text(file.read_text().replace("pr.optim.SGD(lr=0.1, momentum=0.9)", "pr.optim.Adam(lr=0.1)"))
    code, out, err = trained("verify", RUN)

    assert (2, "") == (code, out)
    assert "differs in what cannot be set: optimizer.class: 'purerun.optim.Adam' -> 'purerun.optim.SGD'" in err
    assert 1 == len(err.splitlines())


def test_code_that_has_changed_is_refused(trained):
    """The recipe is the same, and the model is another."""
    file = Path("tiny.py")
    file.write_text(file.read_text().replace("nn.Dropout(dropout)", "nn.Dropout1d(dropout)"))
    code, _, err = trained("rewind", RUN, "--at", "5")

    assert 2 == code
    assert "the state of iteration 3 was made by another step, with the same recipe: - " in err
    assert 1 == len(err.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "nowhere"), "nowhere: expected a checkpoint or the directory of a run"),
        (("show", RUN, "--set", "seed=1"), "expected --set with a recipe file, got it with runs/tiny"),
        (("diff", RUN, "nowhere"), "nowhere: expected a checkpoint or the directory of a run"),
        (("diff", RUN), 'Command "diff" parameter B requires an argument'),
        (("verify", "nowhere"), "nowhere: expected the directory of a run, found nothing"),
        (
            ("verify", path_of(RUN, 3)),
            "runs/tiny/checkpoints/iter_00000003: expected the directory of a run, found a ch",
        ),
        (("verify", RUN, "--samples", "0"), 'Invalid value "0" for --samples'),
        (("verify", RUN, "--recipe", "none.py"), "none.py: there is no such file"),
        (("bisect", RUN, "nowhere", "--recipe", "tiny.py"), "nowhere: expected the directory of a run, found nothing"),
        (("rewind", RUN), 'Command "rewind" parameter --at requires an argument'),
        (
            ("rewind", RUN, "--at", "7"),
            "runs/tiny: expected an iteration from 1 to 6, which is how far it has come, got 7",
        ),
        (("rewind", RUN, "--at", "1.5"), 'Invalid value for --at: expected a whole number, got "1.5"'),
        (("why", RUN, "--at", "2.0"), 'Invalid value for --at: expected a whole number, got "2.0"'),
        (("seen", RUN, "--sample", "1e1"), 'Invalid value for --sample: expected a whole number, got "1e1"'),
        (("seen", RUN, "--sample", "-1"), "expected a sample from 0 to 19, the indices of the dataset, got -1"),
        (("verify", RUN, "--samples", "1.5"), 'Invalid value for --samples: expected a whole number, got "1.5"'),
        (("verify", RUN, "--seed", "-1"), 'Invalid value "-1" for --seed'),
        (("verify", ""), "expected a path, got ''"),
        (("fork", RUN, "--at", "3", "--work-dir", ""), "Invalid value for --work-dir: expected a path, got ''"),
        (
            ("fork", RUN, "--at", "3", "--work-dir", path_of(RUN, 3)),
            "runs/tiny/checkpoints/iter_00000003 lies in the checkpoint ",
        ),
        (("rewind", RUN, "--at", "x"), 'Invalid value for --at: expected a whole number, got "x"'),
        (("fork", RUN, "--at", "3"), 'Command "fork" parameter --work-dir requires an argument'),
        (("fork", RUN, "--at", "3", "--work-dir", RUN), "runs/tiny holds a run; choose another place for the new one"),
        (("fork", RUN, "--at", "0", "--work-dir", "b"), "runs/tiny: expected an iteration from 1 to 6"),
        (
            ("fork", RUN, "--at", "3", "--work-dir", "b", "--set", "seed"),
            "expected PATH=VALUE such as optimizer.lr=0.1",
        ),
        (("why", RUN, "--at", "0"), "runs/tiny: expected an iteration from 1 to 6"),
        (("seen", RUN, "--sample", "20"), "expected a sample from 0 to 19, the indices of the dataset, got 20"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_told_in_one_line(trained, words, message):
    """It says what came, and what to do."""
    code, out, err = trained(*words)

    assert (2, "") == (code, out)
    assert err.startswith(f"purerun: {message}")
    assert 1 == len(err.splitlines())


# ---------------------------------------------------------------------- a real recipe
def test_the_digits_run_is_audited(command):
    """It passes; with one weight of one checkpoint changed and its manifest signed again, that is named."""
    recipe = ROOT / "recipes" / "digits.py"
    assert (
        0
        == command("train", recipe, "--work-dir", "runs/digits", "--set", "epochs=2", "--set", "checkpoint=23 iters")[0]
    )
    shutil.copytree("runs/digits", "runs/altered")
    name = alter("runs/altered", 23)
    good = command("verify", "runs/digits", "--recipe", recipe)
    bad = command("verify", "runs/altered", "--recipe", recipe)

    assert (0, "all 2 agree") == (good[0], good[1].splitlines()[-1])
    assert (1, "1 of 2 do not agree") == (bad[0], bad[1].splitlines()[-1])
    assert ["seed", "->", "23", "DIFFERS", f"params/{name}:"] == bad[1].splitlines()[0].split()[:5]
    assert "only this checkpoint was altered: from the recomputed state, iter_00000046 follows" in bad[1]
