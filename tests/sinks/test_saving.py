"""Saving beside the run: handed over at once, written as it was, and told when it could not be."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

import purerun as pr
from purerun.checkpoint import (
    CheckpointError,
    NotRemoved,
    SaveError,
    last,
    name_of,
    names,
    path_of,
    pointers,
    read_manifest,
    read_weights,
    remove,
)
from purerun.hooks import Every
from purerun.sinks import SinkError
from purerun.sinks.checkpoints import NotSaved
from tests.sinks import runs

Checkpoint = pr.sinks.Checkpoint


class Disk:
    """Stands before `save`: full at some iterations, and shut for a while."""

    def __init__(self, save):
        self._save, self.tried = save, []
        self.full, self.open = set(), threading.Event()
        self.open.set()

    def __call__(self, state, place, **more):
        self.open.wait()
        iter = int(state["iter"])
        try:
            if iter in self.full:
                raise SaveError(f"{place}: cannot be written: No space left on device")
            return self._save(state, place, **more)
        finally:
            self.tried.append(iter)

    def has_tried(self, iter):
        """Wait for the thread that writes."""
        while iter not in self.tried:
            time.sleep(0.001)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk(pr.save)
    monkeypatch.setattr("purerun.sinks.checkpoints.save", disk)
    yield disk
    disk.open.set()


def saved(run):
    return [int(name.removeprefix("iter_")) for name in names(run)]


@pytest.mark.parametrize("lease", [False, True])
def test_the_run_goes_on_while_a_state_is_written(disk, tmp_path, lease):
    """What is written later is the state as it was handed over, whatever the run has done since."""
    disk.open.clear()
    watched = pr.watch(runs.states(lease=lease), Checkpoint(tmp_path, every=pr.hooks.At((2,), "iter"), last=False))
    digests = [pr.digest(next(watched)) for _ in range(8)]
    assert [] == saved(tmp_path)

    disk.open.set()
    watched.close()
    assert [2] == saved(tmp_path)
    assert digests[1] == pr.digest(pr.load(tmp_path))


def test_no_more_than_two_states_are_in_the_hands_of_the_writer(disk, tmp_path):
    """The third one waits until the first is written."""
    disk.open.clear()
    watched = pr.watch(runs.states(), Checkpoint(tmp_path, every="1 iters"))
    next(watched), next(watched)
    third = threading.Thread(target=next, args=(watched,))
    third.start()
    third.join(0.2)
    waits = third.is_alive()
    disk.open.set()
    third.join()
    watched.close()

    assert waits
    assert [1, 2, 3] == saved(tmp_path)


def test_what_could_not_be_written_stops_the_run_at_its_next_state(disk, tmp_path):
    """What was good is good; the state that the run has in hand is saved."""
    disk.full = {4}
    watched = pr.watch(runs.states(), Checkpoint(tmp_path, every="2 iters"))
    for _ in range(4):
        next(watched)
    disk.has_tried(4)
    with pytest.raises(SaveError, match="iter_00000004: cannot be written"):
        next(watched)

    assert [2, 5] == saved(tmp_path)
    assert 5 == int(pr.load(tmp_path)["iter"])


def test_a_run_can_go_on_without_a_checkpoint(disk, tmp_path):
    """It is told, and the checkpoints after it name the one before it as their parent."""
    disk.full = {4}
    watched = pr.watch(runs.states(), Checkpoint(tmp_path, every="2 iters", on_error="warn"))
    for _ in range(4):
        next(watched)
    disk.has_tried(4)
    with pytest.warns(NotSaved, match="iter_00000004: cannot be written: .*; the run goes on"):
        runs.drain(watched)

    assert [2, 6, 8, 10, 12] == saved(tmp_path)
    assert read_manifest(path_of(tmp_path, 2)).digest == read_manifest(path_of(tmp_path, 6)).parent


def test_a_last_state_that_cannot_be_saved_is_an_error_in_any_case(disk, tmp_path):
    """Also for a run that may go on without checkpoints."""
    disk.full = {runs.ITERS}
    with pytest.raises(SaveError, match="iter_00000012"):
        runs.drain(pr.watch(runs.states(), Checkpoint(tmp_path, every="5 iters", on_error="warn")))

    assert [5, 10] == saved(tmp_path)


def test_an_older_state_that_cannot_be_saved_is_no_error_at_the_end(disk, tmp_path):
    """Of a run that may go on: the last one is there."""
    disk.open.clear()
    disk.full = {10}
    watched = pr.watch(runs.states(), Checkpoint(tmp_path, every="10 iters", on_error="warn"))
    states = [next(watched) for _ in range(runs.ITERS)]
    threading.Timer(0.05, disk.open.set).start()
    with pytest.warns(NotSaved, match="iter_00000010"):
        assert [] == list(watched)

    assert [runs.ITERS] == saved(tmp_path) == [int(states[-1]["iter"])]


def test_the_log_is_on_the_disk_before_the_checkpoint_that_counts_on_it(disk, tmp_path):
    """A log that was removed under a run is missed when the next checkpoint is made."""
    log = pr.sinks.Log(every=2, path=tmp_path / "log.jsonl", console=False)
    watched = pr.watch(runs.states(), log, Checkpoint(tmp_path, every="4 iters"))
    for _ in range(5):
        next(watched)
    disk.has_tried(4)
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(SaveError, match=r"log\.jsonl"):
        runs.drain(watched)

    assert [4] == saved(tmp_path)


SCORES = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.9, 5: float("nan"), 6: 0.2, 7: 0.95, 8: 0.1}


class Judge(runs.Judge):
    """Writes scores that are known beforehand."""

    def __call__(self, state):
        scores = {"accuracy": SCORES[int(state["iter"])], "loss": 1 - SCORES[int(state["iter"])]}
        return state.replace(scores={"iter": state["iter"], **{name: float(value) for name, value in scores.items()}})

    def slots(self, state):
        slots = super().slots(state)["scores"]
        return {"scores": {"accuracy": slots["size"], "loss": slots["size"].clone(), "iter": slots["iter"]}}


def judged(state=None, iters=8):
    return runs.states(state, iters=iters, hooks=[Judge(every="1 iters")])


def best(run):
    return {pointer: int(name.removeprefix("iter_")) for pointer, name in pointers(run).items() if pointer != "last"}


def test_the_best_is_kept_beside_the_newest(tmp_path):
    """The first of equals; NaN never; saved although it was not due; several scores at once."""
    expected = {1: (1, [1]), 2: (2, [2]), 3: (2, [2, 3]), 6: (2, [2, 6]), 7: (7, [7]), 8: (7, [7, 8])}
    for state in pr.watch(judged(), Checkpoint(tmp_path, every="3 iters", keep=1, best=["accuracy", "loss"])):
        named, there = expected.get(int(state["iter"]), (None, None))
        while named and (best(tmp_path), saved(tmp_path)) != ({"best_accuracy": named, "best_loss": named}, there):
            time.sleep(0.001)  # written by a thread; a test that waits for ever fails
        if named == 7:
            break

    assert [7] == saved(tmp_path)


def test_a_best_checkpoint_is_a_whole_one(tmp_path):
    """The run goes on from it to the same end."""
    *_, whole = pr.watch(judged(), Checkpoint(tmp_path / "a", every="8 iters", best="accuracy"))
    state = pr.load(path_of(tmp_path / "a", 2))

    assert {"accuracy": 0.9, "loss": pytest.approx(0.1)} == read_manifest(path_of(tmp_path / "a", 2)).scores
    assert pr.digest(whole) == pr.digest(runs.drain(judged(state)))


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("back", [0, 1])
def test_an_interrupted_run_keeps_the_same_checkpoints(tmp_path, at, back):
    """Stopped anywhere, and gone on from its newest checkpoint or the one before."""
    sink = Checkpoint(tmp_path / "whole", every="2 iters", keep=2, best="accuracy", last=False)
    runs.drain(pr.watch(judged(), sink))
    run = tmp_path / "run"
    sink = Checkpoint(run, every="2 iters", keep=2, best="accuracy", last=False)
    runs.drain(pr.watch(judged(iters=at), sink))
    known = saved(run)
    start = path_of(run, known[max(0, len(known) - 1 - back)])
    runs.drain(pr.watch(judged(pr.load(start)), sink, resume=start))

    assert (saved(tmp_path / "whole"), best(tmp_path / "whole")) == (saved(run), best(run))


def test_an_unknown_score_is_refused_at_the_first_state(tmp_path):
    """With the scores that there are."""
    with pytest.raises(pr.sinks.SinkError, match=r"best to be among .*'accuracy'.*, got 'top5'"):
        next(pr.watch(judged(), Checkpoint(tmp_path, best="top5")))


def test_a_checkpoint_that_only_a_stop_has_made_counts_among_the_newest(tmp_path):
    """So the one before it goes earlier than in a run that was never stopped, and it goes itself in its turn."""
    sink = Checkpoint(tmp_path, every="2 iters", keep=2)
    for state in pr.watch(judged(), sink):
        if int(state["iter"]) == 5:
            break
    assert [4, 5] == saved(tmp_path)

    for end, expected in ((6, [5, 6]), (8, [6, 8])):
        state = runs.drain(pr.watch(judged(pr.load(tmp_path), iters=end), sink, resume=tmp_path))
        assert expected == saved(tmp_path)
    assert pr.digest(runs.drain(judged())) == pr.digest(state)


@pytest.mark.parametrize("given", [None, "accuracy"])
def test_what_is_given_up_is_not_pointed_to(tmp_path, given):
    """A run that goes on from before its best one has no best one until there is one again, whatever is asked for."""
    runs.drain(pr.watch(judged(iters=4), Checkpoint(tmp_path, every="1 iters", best="accuracy")))
    assert {"best_accuracy": 2} == best(tmp_path)
    start, blank = path_of(tmp_path, 1), read_manifest(path_of(tmp_path, 1)).scores
    pr.save(pr.load(start).replace(scores={"iter": -1}), start)  # as if it had never been judged
    assert blank
    assert not read_manifest(start).scores

    sink = Checkpoint(tmp_path, every="9 iters", best=given or ())
    watched = pr.watch(runs.states(pr.load(start), iters=3, hooks=[Judge(every="9 iters")]), sink, resume=start)
    next(watched)
    assert ([1], {}) == (saved(tmp_path), best(tmp_path))
    watched.close()


def test_a_fork_inside_a_checkpoint_is_not_removed(tmp_path):
    """The run goes on past it, and says so; what is to be given up with it, or replaced, is refused at the start."""
    run, every = tmp_path / "run", {"every": "1 iters", "keep": 1}
    runs.drain(pr.watch(runs.states(iters=2), Checkpoint(run, every="1 iters")))
    fork = path_of(run, 1) / "fork"
    runs.drain(pr.watch(runs.states(iters=1), Checkpoint(fork)))
    with pytest.warns(NotRemoved, match="00000001: not removed, since it holds fork beside a checkpoint; move that"):
        runs.drain(pr.watch(runs.states(pr.load(run), iters=4), Checkpoint(run, **every), resume=run))
    assert ([1, 4], [1]) == (saved(run), saved(fork))

    with pytest.raises(CheckpointError, match="00000001: not removed, since it holds fork"):
        next(pr.watch(runs.states(), Checkpoint(run), overwrite=True))
    assert [1] == saved(fork)


@pytest.mark.parametrize("publish", ["ema", "optim", "buffers", "best", "../x"])
def test_weights_that_a_run_does_not_have_are_refused_at_the_first_state(tmp_path, publish):
    """With those that there are; not hours later."""
    with pytest.raises(pr.sinks.SinkError, match=rf"publish to be among the weights .*\['params'\], got '{publish}'"):
        next(pr.watch(runs.states(), Checkpoint(tmp_path, publish=publish)))


def averaged(iters=2):
    step = pr.wrap(runs.step(), pr.EMA(0.5))
    return pr.TrainLoop(step, iters=iters)(step.init(seed=0), runs.loader())


@pytest.mark.parametrize("publish", ["params", "ema"])
def test_the_weights_of_a_run_are_published(tmp_path, publish):
    """The trained ones, or their average; of the last state, where none is the best."""
    state = runs.drain(pr.watch(averaged(), Checkpoint(tmp_path / "net", publish=publish)))
    (file,) = (tmp_path / "net").glob("net-*.safetensors")
    expected = state["params"] if publish == "params" else state["ema", "params"]
    found = read_weights(file)

    assert set(expected.names()) == set(found)
    assert all(torch.equal(expected[name], found[name]) for name in found)


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("my run", "my_run-"),
        ("..run", "run-"),
        ("a:b*c?\n", "a_b_c__-"),
        ("-net", "net-"),
        ("--", "weights-"),
        ("h\u00e9", "h\u00e9-"),
        ("n" * 255, "n" * 150 + "-"),
        ("\u00e9" * 127, "\u00e9" * 75 + "-"),
    ],
)
def test_weights_are_published_under_a_plain_name(tmp_path, name, begin):
    """Whatever the directory of the run is called."""
    runs.drain(pr.watch(runs.states(iters=1), Checkpoint(tmp_path / name, publish="params")))

    assert [begin] == [file.name[:-20] for file in (tmp_path / name).glob("*.safetensors")]


def test_a_best_checkpoint_that_is_gone_is_not_published(tmp_path):
    """A pointer to nothing is passed over: the last state's weights are."""
    sink = Checkpoint(tmp_path, every="1 iters", best="accuracy", last=False, publish="params")
    watched = pr.watch(judged(iters=4), sink)
    for state in watched:
        if int(state["iter"]) == 4:
            runs.written(tmp_path, 4)
            remove(tmp_path, name_of(2))
    (file,) = tmp_path.glob("*.safetensors")

    assert all(torch.equal(state["params"][name], leaf) for name, leaf in read_weights(file).items())


@pytest.mark.parametrize("url", ["s3://bucket/a", "memory://a", "file:///runs/a", Path("s3://bucket/a")])
def test_a_run_is_kept_on_this_machine(url):
    """A URL is refused at once, with what does work."""
    with pytest.raises(ValueError, match=r"expected a directory of this machine .*:/.*; give its path, .*pr\.save\(st"):
        Checkpoint(url)
    with pytest.raises(ValueError, match=r"expected a file of this machine for the log, got .*:/.*; give its path"):
        pr.sinks.Log(path=f"{url}/log.jsonl" if isinstance(url, str) else url / "log.jsonl")


def test_a_clock_may_ask_for_checkpoints(tmp_path, monkeypatch):
    """So many minutes after the last one; the states stay the same."""
    now = [0.0]
    monkeypatch.setattr("purerun.sinks.checkpoints.perf_counter", lambda: now[0])
    for _ in pr.watch(runs.states(), Checkpoint(tmp_path, every=["5 iters", "10 minutes"], last=False)):
        now[0] += 300.0

    assert [3, 5, 7, 9, 10, 12] == saved(tmp_path)


def test_saving_begins_where_mmengine_begins(tmp_path):
    """`interval=3, save_begin=5` of its CheckpointHook: (done - 5) % 3 == 0, from 5 on."""
    runs.drain(pr.watch(runs.states(), Checkpoint(tmp_path, every=Every(3, "iter", begin=5, offset=5), last=False)))

    assert [5, 8, 11] == saved(tmp_path)
    assert name_of(11) == last(tmp_path)


def test_a_refused_resume_leaves_the_checkpoints(tmp_path):
    """Though one sink has nothing against it: none begins before all have agreed."""
    for name in ("a", "b"):
        for _ in pr.watch(
            runs.states(), pr.sinks.Log(1, tmp_path / name / "log.jsonl"), Checkpoint(tmp_path / name, every=4)
        ):
            pass
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    point = tmp_path / "a" / "checkpoints" / "iter_00000004"
    states = runs.states(pr.load(point))
    with pytest.raises(SinkError, match="holds the log of another run"):
        next(
            iter(
                pr.watch(
                    states, pr.sinks.Log(1, tmp_path / "b" / "log.jsonl"), Checkpoint(tmp_path / "a"), resume=point
                )
            )
        )

    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_run_that_is_over_publishes_nothing_of_another(tmp_path):
    """Whose directory it is told to replace."""
    for _ in pr.watch(runs.states(), Checkpoint(tmp_path, every=4)):
        pass
    with pytest.raises(SinkError, match="expected a run with a state to publish"):
        list(pr.watch(iter(()), Checkpoint(tmp_path, publish="params"), overwrite=True))

    assert not list(tmp_path.glob("*.safetensors"))


def test_two_sinks_in_one_directory_are_refused(tmp_path):
    """They would remove each other's checkpoints."""
    with pytest.raises(SinkError, match="got two that write into"):
        next(iter(pr.watch(runs.states(), Checkpoint(tmp_path, every=4), Checkpoint(tmp_path / ".", every=3))))
    assert not list(tmp_path.iterdir())
