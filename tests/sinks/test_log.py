"""The log: means that equal a computation by hand, and a file that no interruption shows in."""

from __future__ import annotations

import json
import math
import shutil
from collections import deque
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import purerun as pr
from purerun.checkpoint import SaveError
from purerun.sinks import SinkError
from purerun.sinks.lines import LostLines
from purerun.sinks.means import Means
from purerun.state import seal
from purerun.testing import counted
from tests.sinks import runs

QUICK = {"console": False}


def log(folder, every=5, **more):
    return pr.sinks.Log(every=every, path=Path(folder) / "log.jsonl", **{**QUICK, **more})


def test_means_equal_a_computation_by_hand(tmp_path):
    """Each term is the mean over the iterations since the last line, each hyper-parameter the newest value."""
    reports = [
        {name: float(leaf) for name, leaf in state["metrics"].items()}
        for state in pr.watch(runs.states(), log(tmp_path))
    ]
    train = [line for line in runs.lines(tmp_path / "log.jsonl") if line["mode"] == "train"]

    assert [(1, 5), (2, 10), (3, 12)] == [(line["epoch"], line["iter"]) for line in train]
    for line, window in zip(train, (reports[:5], reports[5:10], reports[10:]), strict=True):
        expected = {name: sum(each[name] for each in window) / len(window) for name in ("loss", "error", "size")}
        assert {"mode", "epoch", "iter", "lr"} | set(expected) == set(line)
        assert {**expected, "lr": window[-1]["lr"]} == {name: line[name] for name in (*expected, "lr")}


def test_validations_are_told_when_they_happen(tmp_path):
    """One line a validation, the one before training included, in its place among the others."""
    scores = {int(s["scores", "iter"]): float(s["scores", "size"]) for s in pr.watch(runs.states(), log(tmp_path))}
    lines = runs.lines(tmp_path / "log.jsonl")

    assert [("val", 0), ("val", 4), ("train", 5), ("val", 8), ("train", 10), ("val", 12), ("train", 12)] == [
        (line["mode"], line["iter"]) for line in lines
    ]
    assert [(0, 0), (1, 4), (2, 8), (3, 12)] == [(x["epoch"], x["iter"]) for x in lines if x["mode"] == "val"]
    assert scores == {line["iter"]: line["size"] for line in lines if line["mode"] == "val"}


def test_equal_scores_are_told_again(tmp_path):
    """A validation with the same result as the one before is a validation all the same."""
    made = [counted(iter=n, scores={"acc": torch.tensor(0.5), "iter": torch.tensor(n - n % 2)}) for n in range(1, 6)]
    runs.drain(pr.watch(iter(made), log(tmp_path, 10)))

    assert [("val", 0), ("val", 2), ("val", 4), ("train", 5)] == [
        (line["mode"], line["iter"]) for line in runs.lines(tmp_path / "log.jsonl")
    ]


def test_two_validations_have_lines_of_their_own(tmp_path):
    """A prefix keeps the scores of one validation from the other's lines."""
    hooks = (runs.Judge(every="2 iters"), runs.Judge(every="3 iters", prefix="ema_"))
    runs.drain(pr.watch(runs.states(iters=4, hooks=hooks), log(tmp_path, 10)))
    told = [set(line) - {"mode", "epoch"} for line in runs.lines(tmp_path / "log.jsonl") if line["mode"] == "val"]

    assert [{"iter", "size"}, {"iter", "ema_size"}, {"iter", "size"}] == told


def test_scores_without_a_counter_are_told_when_they_change(tmp_path):
    """Scores of a hook of the user's own: a line when a value changes, NaN to NaN being no change."""
    values = [math.nan, math.nan, 0.5, 0.5, 0.25]
    made = [counted(iter=n, scores={"acc": torch.tensor(v)}) for n, v in enumerate(values, 1)]
    runs.drain(pr.watch(iter(made), log(tmp_path, 10)))

    assert [(3, 0.5), (5, 0.25)] == [
        (line["iter"], line["acc"]) for line in runs.lines(tmp_path / "log.jsonl") if line["mode"] == "val"
    ]


@pytest.mark.parametrize("every", [5, "1 epoch", pr.hooks.At((2, 7), "iter")])
def test_any_condition_tells_when(every, tmp_path):
    """An interval in iterations, in epochs, or any condition; what is left comes at the end."""
    runs.drain(pr.watch(runs.states(hooks=()), log(tmp_path, every)))
    expected = {5: [5, 10, 12], "1 epoch": [4, 8, 12]}.get(every, [2, 7, 12])

    assert expected == [line["iter"] for line in runs.lines(tmp_path / "log.jsonl")]


def test_a_short_run_is_logged(tmp_path):
    """Fewer iterations than the interval: one line, at the end."""
    runs.drain(pr.watch(runs.states(iters=3, hooks=()), log(tmp_path, 50)))

    assert [3] == [line["iter"] for line in runs.lines(tmp_path / "log.jsonl")]


def test_a_run_that_fails_tells_what_it_saw(tmp_path):
    """The last losses before an error are in the log."""

    def failing():
        yield counted(iter=1, metrics={"loss": torch.tensor(2.0)})
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        runs.drain(pr.watch(failing(), log(tmp_path, 50)))

    assert [2.0] == [line["loss"] for line in runs.lines(tmp_path / "log.jsonl")]


def test_a_leased_run_has_the_same_log(tmp_path):
    """Lease or values: the same lines."""
    for name, lease in (("a", False), ("b", True)):
        runs.drain(pr.watch(runs.states(lease=lease), log(tmp_path / name)))

    assert runs.lines(tmp_path / "a" / "log.jsonl") == runs.lines(tmp_path / "b" / "log.jsonl")


def test_clocks_and_the_time_that_is_left(tmp_path):
    """`time` and `eta` are seconds, `timestamp` a moment in UTC; `eta` is there once the total is known."""
    runs.drain(pr.watch(runs.states(hooks=()), log(tmp_path / "a", total=12)))
    runs.drain(pr.watch(runs.states(hooks=()), log(tmp_path / "b", total="3 epochs")))
    a, b = (runs.lines(tmp_path / name / "log.jsonl", clocks=True) for name in "ab")

    assert all(line["time"] > 0 and line["timestamp"].endswith("+00:00") for line in a + b)
    assert [True, True, True] == ["eta" in line for line in a]
    assert [False, True, True] == ["eta" in line for line in b]
    assert 0.0 == a[-1]["eta"] == b[-1]["eta"]


def test_names_of_the_log_itself_are_not_taken(tmp_path):
    """A metric that is called like a field of the log is written beside it."""
    runs.drain(pr.watch(iter([counted(iter=1, metrics={"time": torch.tensor(7.0)})]), log(tmp_path)))
    (line,) = runs.lines(tmp_path / "log.jsonl")

    assert ("train", 7.0) == (line["mode"], line["metrics/time"])


def test_what_is_no_scalar_is_left_out(tmp_path):
    """A metric of several elements is for other sinks."""
    state = counted(iter=1, metrics={"loss": torch.tensor(1.0), "each": torch.ones(3)})
    runs.drain(pr.watch(iter([state]), log(tmp_path)))

    assert {"mode", "epoch", "iter", "loss"} == set(runs.lines(tmp_path / "log.jsonl")[0])


def test_members_of_a_population_have_names_of_their_own(tmp_path, capsys):
    """In the file each has its value; on the console, where there may be hundreds, the range; NaN is not hidden."""
    own = torch.tensor([0, 1], dtype=torch.int64)
    scores = {"acc": torch.tensor([0.5, 0.75]), "iter": torch.tensor(0)}
    reports = [{"loss": torch.tensor([1.0, torch.nan]), "n": torch.tensor(2.0)}, {"loss": torch.tensor([2.0, 3.0])}]
    states = [counted(iter=i + 1, metrics=r, scores={**scores, "iter": torch.tensor(i)}) for i, r in enumerate(reports)]
    sink = pr.sinks.Log(every=2, path=tmp_path / "log.jsonl")
    runs.drain(pr.watch(iter([state.replace(seeds=own) for state in states]), sink))
    lines = [{k: v for k, v in line.items() if k not in runs.CLOCKS} for line in runs.lines(tmp_path / "log.jsonl")]

    assert {"mode": "train", "epoch": 0, "iter": 2, "loss[0]": 1.5, "loss[1]": "nan", "n": 2.0} in lines
    assert [0.5, 0.75] == [lines[0]["acc[0]"], lines[0]["acc[1]"]]
    assert "loss 1.5, nan" in capsys.readouterr().err


def test_the_console_shows_the_same_lines(capsys):
    """Without a file, readable lines on stderr, and nothing on stdout."""
    runs.drain(pr.watch(runs.states(iters=4), pr.sinks.Log(every=2)))
    out, err = capsys.readouterr()
    told = [line.split("  ")[:3] for line in err.splitlines()]

    assert "" == out
    assert [["val", "epoch 0", "iter 0"], ["train", "epoch 0", "iter 2"]] == told[:2]
    assert "lr 0.1" in err


def stopped(folder, at, *, killed, last):
    """Run to an iteration and stop: leaving the run, or killed, so that only what is on the disk is left."""
    sinks = log(folder / "first"), pr.sinks.Checkpoint(folder / "first", every="3 iters", last=last)
    watched = pr.watch(runs.states(lease=True), *sinks)
    for _ in range(at):
        next(watched)
    if killed:
        runs.written(folder / "first", at // 3 * 3)
        shutil.copytree(folder / "first", folder / "run")
        watched.close()
    else:
        watched.close()
        shutil.copytree(folder / "first", folder / "run")
    return folder / "run"


def resumed(run, every, **more):
    state = pr.load(run)
    watched = pr.watch(
        runs.states(state, lease=True), log(run), pr.sinks.Checkpoint(run, every=every), resume=run, **more
    )
    return deque(watched, maxlen=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    last = runs.drain(pr.watch(runs.states(), log(run), pr.sinks.Checkpoint(run, every="3 iters")))
    return runs.lines(run / "log.jsonl"), pr.digest(last)


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("at", range(3, runs.ITERS + 1))
def test_an_interrupted_run_has_the_log_of_an_uninterrupted_one(at, last, killed, whole, tmp_path):
    """Stopped at every iteration, and gone on from a checkpoint that may be older: same lines, same digest."""
    run = stopped(tmp_path, at, killed=killed, last=last)
    resumed(run, "3 iters")

    assert whole == (runs.lines(run / "log.jsonl"), pr.digest(pr.load(run)))


def test_a_run_stopped_after_every_iteration_has_the_same_log(whole, tmp_path):
    """Twelve processes of one iteration each: same lines, same digest."""
    for n in range(runs.ITERS):
        state = pr.load(tmp_path) if n else None
        sinks = log(tmp_path), pr.sinks.Checkpoint(tmp_path, every="100 epochs")
        watched = pr.watch(runs.states(state), *sinks, resume=tmp_path if n else None)
        next(watched)
        if n == runs.ITERS - 1:
            deque(watched)
        watched.close()

    assert whole == (runs.lines(tmp_path / "log.jsonl"), pr.digest(pr.load(tmp_path)))


def test_a_run_that_is_made_longer_has_the_log_of_the_longer_run(whole, tmp_path):
    """What was written at the end of the shorter run is cut; the longer one says it in its own place."""
    sinks = log(tmp_path), pr.sinks.Checkpoint(tmp_path, every="3 iters")
    runs.drain(pr.watch(runs.states(iters=7), *sinks))
    runs.drain(pr.watch(runs.states(pr.load(tmp_path)), *sinks, resume=tmp_path))

    assert whole == (runs.lines(tmp_path / "log.jsonl"), pr.digest(pr.load(tmp_path)))


numbers = st.floats(width=32) | st.floats(-1e30, 1e30)


@given(values=st.lists(numbers, min_size=1, max_size=12), cuts=st.sets(st.integers(0, 12)))
def test_sums_do_not_depend_on_where_they_were_saved(values, cuts):
    """Written down as JSON and read back between any two iterations, a mean has the same bits."""
    plain, broken = Means(), Means()
    for place, value in enumerate(values):
        report = {"loss": torch.tensor(value, dtype=torch.float64)}
        plain.pending.append(report)
        if place in cuts:
            memory = json.loads(json.dumps(broken.memory(), allow_nan=False))
            broken = Means()
            broken.recall(memory)
        broken.pending.append(report)

    assert str(plain.take()) == str(broken.take())


def test_a_log_of_another_run_is_not_touched(tmp_path):
    """A file that holds something is refused, and replaced when that is asked for."""
    path = tmp_path / "log.jsonl"
    path.write_text("precious\n")
    with pytest.raises(SinkError, match=r"log\.jsonl holds the log of another run.*resume=.*overwrite=True"):
        next(pr.watch(runs.states(), log(tmp_path)))
    assert "precious\n" == path.read_text()

    runs.drain(pr.watch(runs.states(), log(tmp_path), overwrite=True))
    assert "val" == runs.lines(path)[0]["mode"]


def test_a_log_that_the_checkpoint_does_not_know_is_not_touched(tmp_path):
    """A log that is new in a resumed run begins empty, or not at all."""
    runs.drain(pr.watch(runs.states(iters=4), pr.sinks.Checkpoint(tmp_path)))
    (tmp_path / "log.jsonl").write_text("precious\n")
    state = pr.load(tmp_path)
    with pytest.raises(SinkError, match="another run"):
        next(pr.watch(runs.states(state), log(tmp_path), resume=tmp_path))
    assert "precious\n" == (tmp_path / "log.jsonl").read_text()

    (tmp_path / "log.jsonl").unlink()
    runs.drain(pr.watch(runs.states(state), log(tmp_path), resume=tmp_path))
    assert [("train", 5), ("val", 8)] == [(x["mode"], x["iter"]) for x in runs.lines(tmp_path / "log.jsonl")][:2]


@pytest.mark.parametrize("kept", [0, 10, -5])
def test_lost_lines_are_told(kept, tmp_path):
    """A log that is shorter than its checkpoint says: a warning, and the run goes on after its last whole line."""
    runs.drain(pr.watch(runs.states(iters=10), log(tmp_path), pr.sinks.Checkpoint(tmp_path)))
    path = tmp_path / "log.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw[:kept])
    with pytest.warns(LostLines, match=r"log\.jsonl: expected \d+ bytes of log, found \d+"):
        resumed(tmp_path, "3 iters")

    modes = [line["iter"] for line in runs.lines(path)]
    assert 12 == modes[-1]


def test_a_log_that_was_changed_is_told(tmp_path):
    """Its whole lines stay, as far as the checkpoint knows of it."""
    runs.drain(pr.watch(runs.states(iters=10), log(tmp_path), pr.sinks.Checkpoint(tmp_path)))
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"val"', b'"other"'))
    with pytest.warns(LostLines, match=r"log\.jsonl: expected \d+ bytes of log, found others"):
        resumed(tmp_path, "3 iters")

    told = runs.lines(path)
    assert (["other", 0], ["train", 12]) == tuple([line["mode"], line["iter"]] for line in (told[0], told[-1]))


def elsewhere(folder, at, *sinks):
    """Go on from a checkpoint of the run in `folder/run`, but with a log in `folder/new`."""
    return pr.watch(runs.states(pr.load(at)), log(folder / "new"), *sinks, resume=at)


def test_the_log_of_a_run_that_goes_on_elsewhere_begins_there(tmp_path):
    """How long it was before says nothing of the new file: lines that are there are neither cut nor added to."""
    run, new = tmp_path / "run", tmp_path / "new" / "log.jsonl"
    runs.drain(pr.watch(runs.states(), log(run), pr.sinks.Checkpoint(run, every="3 iters")))
    at = pr.checkpoint.path_of(run, 6)
    runs.drain(elsewhere(tmp_path, at))
    assert [8, 10, 12, 12] == [line["iter"] for line in runs.lines(new)]

    before = new.read_bytes() * 9
    new.write_bytes(before)
    with pytest.raises(SinkError, match=r"log\.jsonl holds the log of another run"):
        next(elsewhere(tmp_path, at))
    runs.drain(pr.watch(runs.states(), log(tmp_path / "c"), pr.sinks.Checkpoint(tmp_path / "c", every="7 iters")))
    over = pr.checkpoint.path_of(tmp_path / "c", 12)
    assert [] == list(pr.watch(iter(()), log(tmp_path / "new"), resume=over))
    assert before == new.read_bytes()


def test_a_log_may_lie_far_from_its_checkpoints(whole, tmp_path):
    """It is known by its own bytes, wherever it is."""
    sinks = log(tmp_path / "new"), pr.sinks.Checkpoint(tmp_path / "run", every="3 iters")
    watched = pr.watch(runs.states(), *sinks)
    for _ in range(7):
        next(watched)
    watched.close()
    at = pr.checkpoint.path_of(tmp_path / "run", 6)
    runs.drain(elsewhere(tmp_path, at, pr.sinks.Checkpoint(tmp_path / "run", every="3 iters")))

    assert whole[0] == runs.lines(tmp_path / "new" / "log.jsonl")


def test_a_checkpoint_that_knows_only_the_length_of_the_log(whole, tmp_path):
    """As they were written before: in the directory of the run that is enough, elsewhere it is not."""
    watched = pr.watch(runs.states(), log(tmp_path), pr.sinks.Checkpoint(tmp_path, every="last"))
    for _ in range(7):
        next(watched)
    watched.close()
    known, state = pr.checkpoint.read_manifest(pr.checkpoint.path_of(tmp_path, 7)), pr.load(tmp_path)
    memory = {"Log log.jsonl": {x: y for x, y in known.memory["Log log.jsonl"].items() if x != "sha256"}}
    pr.save(state, pr.checkpoint.path_of(tmp_path, 7), memory=memory)
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "far" / "checkpoints")
    with pytest.raises(SinkError, match="another run"):
        next(pr.watch(runs.states(state), log(tmp_path), resume=tmp_path / "far"))
    runs.drain(pr.watch(runs.states(state), log(tmp_path), resume=tmp_path))

    assert whole[0] == runs.lines(tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("blocks", "kind"),
    [
        (lambda path: path.mkdir(), SinkError),
        (lambda path: path.symlink_to(path.parent / "nowhere" / "log.jsonl"), SaveError),
        (lambda path: path.symlink_to(path), SaveError),
    ],
    ids=["folder", "dangling", "circle"],
)
def test_what_is_no_file_is_told(blocks, kind, tmp_path):
    """In a line, whether the run begins or goes on: what is in the way is a mistake, a disk that refuses is none."""
    runs.drain(pr.watch(runs.states(iters=4), pr.sinks.Checkpoint(tmp_path)))
    blocks(tmp_path / "log.jsonl")
    with pytest.raises(kind, match=r"log\.jsonl: .*; (free space or )?choose another place"):
        next(pr.watch(runs.states(), log(tmp_path)))
    with pytest.raises(kind, match=r"log\.jsonl: .*; (free space or )?choose another place"):
        next(pr.watch(runs.states(pr.load(tmp_path)), log(tmp_path), resume=tmp_path))


def test_hyper_parameters_of_named_steps_are_known_by_their_names(tmp_path):
    """`critic.lr` in the report is the `lr` of the step `critic`: told as it is, not as a mean."""
    made = [
        seal(
            {
                **{name: torch.tensor(n) for name in ("iter", "epoch", "cursor")},
                "hyper": {"critic": {"lr": torch.tensor(1.0)}},
                "scores": {},
                "metrics": {"critic.lr": torch.tensor(float(n)), "critic.loss": torch.tensor(float(n))},
            }
        )
        for n in (1, 2, 3)
    ]
    runs.drain(pr.watch(iter(made), log(tmp_path, 10)))
    (line,) = runs.lines(tmp_path / "log.jsonl")

    assert (3.0, 2.0) == (line["critic.lr"], line["critic.loss"])


@pytest.mark.cuda
def test_a_device_is_waited_for_at_lines_only(tmp_path):
    """Between two lines nothing is read from an accelerator; at a line, all values come over exactly."""
    made = [counted(iter=n, metrics={"loss": torch.tensor(n / 7, device="cuda")}) for n in range(1, 21)]
    watched = pr.watch(iter(made), log(tmp_path, 10))
    for n in range(1, 21):
        torch.cuda.set_sync_debug_mode("default" if n % 10 == 0 else "error")
        next(watched)
    torch.cuda.set_sync_debug_mode("default")
    watched.close()
    expected = [sum(float(state["metrics", "loss"]) for state in part) / 10 for part in (made[:10], made[10:])]

    assert expected == [line["loss"] for line in runs.lines(tmp_path / "log.jsonl")]
