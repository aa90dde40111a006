"""Checkpoints of a run: when they are due, at the end, never too few, and never of a state that was not whole."""

from __future__ import annotations

import time

import pytest

import purerun as pr
from purerun.checkpoint import find, last, name_of, names, newest, path_of, read_manifest
from purerun.sinks import Sink, SinkError, Watcher
from purerun.testing import counted
from tests.sinks import runs

Checkpoint = pr.sinks.Checkpoint


def saved(run):
    return [int(name.removeprefix("iter_")) for name in names(run)]


def wait_until(true):
    """Give the thread that writes the time it takes; a test that waits for ever is ended."""
    while not true():
        time.sleep(0.001)


def parents(run):
    return [(m.parent, m.digest) for m in (read_manifest(run / "checkpoints" / name) for name in names(run))]


@pytest.mark.parametrize(
    ("every", "end", "expected"),
    [
        ("1 epoch", True, [4, 8, 10]),
        ("1 epoch", False, [4, 8]),
        ("5 iters", True, [5, 10]),
        ("last", True, [10]),
        (pr.hooks.At((1, 7), "iter"), False, [1, 7]),
    ],
)
@pytest.mark.parametrize("lease", [False, True])
def test_due_states_and_the_last_one_are_saved(every, end, expected, lease, tmp_path):
    """What is on the disk are the states at which it was due, and the last one unless it is not wanted."""
    digests = {}
    for state in pr.watch(runs.states(lease=lease, iters=10), Checkpoint(tmp_path, every=every, last=end)):
        digests[int(state["iter"])] = pr.digest(state)

    assert expected == saved(tmp_path)
    assert name_of(expected[-1]) == last(tmp_path)
    for iter in expected:
        assert digests[iter] == pr.digest(pr.load(path_of(tmp_path, iter)))


def test_each_checkpoint_names_the_one_before(tmp_path):
    """The digests of a run's checkpoints are a chain, across a resume too."""
    sinks = (Checkpoint(tmp_path, every="2 iters", recipe={"lr": 0.1}),)
    runs.drain(pr.watch(runs.states(iters=4), *sinks))
    runs.drain(pr.watch(runs.states(pr.load(tmp_path), iters=7), *sinks, resume=tmp_path))
    chain = parents(tmp_path)

    assert [2, 4, 6, 7] == saved(tmp_path)
    assert [None, *(digest for _, digest in chain[:-1])] == [parent for parent, _ in chain]
    assert {"lr": 0.1} == read_manifest(find(tmp_path)).recipe


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(keep, tmp_path):
    """At any moment there are at most so many, the newest, and `last` names one of them."""
    for state in pr.watch(runs.states(iters=9), Checkpoint(tmp_path, every="2 iters", keep=keep)):
        expected = list(range(2, int(state["iter"]) + 1, 2))[-keep:]
        if expected:
            runs.written(tmp_path, expected[-1])
            wait_until(lambda expected=expected: saved(tmp_path) == expected)

    assert [2, 4, 6, 8, 9][-keep:] == saved(tmp_path)


def test_what_was_given_up_is_removed(tmp_path):
    """Taken back to an earlier checkpoint, a run goes on from there, and what lay after it is gone."""
    runs.drain(pr.watch(runs.states(iters=8), Checkpoint(tmp_path, every="2 iters")))
    old = path_of(tmp_path, 4)
    watched = pr.watch(runs.states(pr.load(old), iters=7), Checkpoint(tmp_path, keep=3), resume=old)
    assert [2, 4, 6, 8] == saved(tmp_path)

    next(watched)
    assert [2, 4] == saved(tmp_path)
    assert (name_of(4), name_of(4)) == (last(tmp_path), newest(tmp_path, pr.load).path.name)

    runs.drain(watched)
    assert [2, 4, 7] == saved(tmp_path)
    assert name_of(7) == last(tmp_path)


def test_a_reader_that_leaves_has_the_last_state_saved(tmp_path):
    """`break` saves the state that the reader had in hand."""
    for state in pr.watch(runs.states(lease=True), Checkpoint(tmp_path)):
        if int(state["iter"]) == 6:
            break

    assert [4, 6] == saved(tmp_path)


@pytest.mark.parametrize("kind", [ArithmeticError, KeyboardInterrupt])
def test_a_loop_that_fails_has_the_last_state_saved(kind, tmp_path):
    """The state before the error is whole, and so it is saved; the error passes."""

    def failing():
        yield from runs.states(iters=2)
        raise kind("here")

    with pytest.raises(kind, match="here"):
        runs.drain(pr.watch(failing(), Checkpoint(tmp_path)))

    assert [2] == saved(tmp_path)


def test_a_state_that_is_gone_is_not_saved(tmp_path):
    """A leased state that its loop has emptied before it failed cannot be saved; the error passes all the same."""

    def failing():
        states = runs.states(lease=True)
        yield next(states)
        next(states)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        runs.drain(pr.watch(failing(), Checkpoint(tmp_path)))

    assert [] == saved(tmp_path)


class Failing(Sink):
    """Fails at the third state."""

    def open(self, desk):
        return _Failing()


class _Failing(Watcher):
    def see(self, state):
        if int(state["iter"]) == 3:
            raise OSError("no space")


@pytest.mark.parametrize("lease", [False, True])
def test_after_a_sink_has_failed_nothing_is_saved(lease, tmp_path):
    """Some sinks have seen the newest state and some have not: no checkpoint could fit them all."""
    log = pr.sinks.Log(every=10, path=tmp_path / "log.jsonl", console=False)
    with pytest.raises(OSError, match="no space"):
        runs.drain(pr.watch(runs.states(lease=lease), log, Failing(), Checkpoint(tmp_path, every="2 iters")))

    assert [2] == saved(tmp_path)


def test_the_checkpoints_of_another_run_are_not_touched(tmp_path):
    """A directory in use is refused, with the ways out; `overwrite` is one."""
    runs.drain(pr.watch(runs.states(iters=8), Checkpoint(tmp_path)))
    with pytest.raises(SinkError, match=r"holds the checkpoints of another run; .*resume=.*overwrite=True"):
        next(pr.watch(runs.states(), Checkpoint(tmp_path)))
    assert [4, 8] == saved(tmp_path)

    next(watched := pr.watch(runs.states(), Checkpoint(tmp_path), overwrite=True))
    assert ([], None) == (saved(tmp_path), last(tmp_path))
    watched.close()
    assert [1] == saved(tmp_path)


def test_going_on_from_another_run_needs_a_place_of_its_own(tmp_path):
    """A run that begins at another's checkpoint writes elsewhere; that other one is its parent."""
    a, b = tmp_path / "a", tmp_path / "b"
    runs.drain(pr.watch(runs.states(iters=4), Checkpoint(a)))
    runs.drain(pr.watch(runs.states(iters=4), Checkpoint(b)))
    with pytest.raises(SinkError, match="another run"):
        next(pr.watch(runs.states(pr.load(a)), Checkpoint(b), resume=a))

    runs.drain(pr.watch(runs.states(pr.load(a), iters=8), Checkpoint(tmp_path / "c"), resume=a))
    assert pr.digest(pr.load(a)) == read_manifest(find(tmp_path / "c")).parent


def test_a_checkpoint_is_no_run(tmp_path):
    """What `pr.save` wrote is not a directory to keep a run in."""
    pr.save(counted(), tmp_path / "a")
    with pytest.raises(SinkError, match="is a checkpoint itself"):
        next(pr.watch(runs.states(), Checkpoint(tmp_path / "a")))


@pytest.mark.parametrize("odd", [{"keep": 0}, {"every": "now and then"}])
def test_odd_settings_are_refused(odd):
    """At once."""
    with pytest.raises(ValueError, match=r"keep|expected"):
        Checkpoint("a", **odd)
