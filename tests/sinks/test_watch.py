"""Watching: states pass untouched, and whatever happens everything is closed and no error is hidden."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import attrs
import pytest
import torch

import purerun as pr
from purerun.sinks import Sink, SinkError, Watcher
from purerun.testing import check_sinks_change_nothing, counted
from tests.sinks import runs


@attrs.frozen
class Spy(Sink):
    """Notes what happens to it, and fails where it is told to."""

    notes: list = attrs.field(factory=list)
    name: str = "Spy"
    fails: str = ""

    @property
    def label(self):
        return self.name

    def open(self, desk):
        self.note("open")
        return _Spying(self)

    def note(self, what, more=""):
        self.notes.append(f"{self.name} {what}{more}")
        if what == self.fails:
            raise OSError(f"{self.name} failed to {what}")


class _Spying(Watcher):
    def __init__(self, spy):
        self.spy = spy

    def see(self, state):
        self.spy.note("see", f" {int(state['iter'])}")

    def close(self, error):
        self.spy.note("close", f" {type(error).__name__}")

    def memory(self):
        return self.spy.name

    def recall(self, memory):
        self.spy.note("recall", f" {memory}")


def numbers(end, fails=False):
    for n in range(1, end + 1):
        yield counted(iter=n)
    if fails:
        raise ArithmeticError("the loop failed")


def test_states_pass_as_they_are():
    """What is read is what the loop made: the same objects, in order."""
    made = list(numbers(4))

    assert [id(state) for state in made] == [id(state) for state in pr.watch(iter(made), Spy(), pr.sinks.Progress())]


def test_all_sinks_change_no_bit(tmp_path):
    """A law: log, bar and checkpoints leave every state as it is, as values and as leases."""
    train = runs.step()
    loop = pr.TrainLoop(train, iters=runs.ITERS, hooks=[runs.Judge(every="1 epoch", before=True)])

    def watched(states):
        sinks = (
            pr.sinks.Log(every=5, path=tmp_path / "log.jsonl", console=False),
            pr.sinks.Progress(),
            pr.sinks.Checkpoint(tmp_path, every="3 iters", keep=2),
        )
        return pr.watch(states, *sinks, overwrite=True)

    check_sinks_change_nothing(loop, train.init(seed=0), runs.loader(), watched)


def test_nothing_is_opened_before_the_first_state():
    """A run that nobody reads has no effects."""
    notes = []
    watched = pr.watch(numbers(3), Spy(notes))

    assert [] == notes
    next(watched)
    assert ["Spy open", "Spy see 1"] == notes
    watched.close()
    assert ["Spy open", "Spy see 1", "Spy close GeneratorExit"] == notes


def test_a_run_to_its_end():
    """Opened in order, shown each state in order, closed in reverse."""
    notes = []
    runs.drain(pr.watch(numbers(2), Spy(notes, "a"), Spy(notes, "b")))

    opened, seen = ["a open", "b open"], ["a see 1", "b see 1", "a see 2", "b see 2"]
    assert [*opened, *seen, "b close NoneType", "a close NoneType"] == notes


def test_a_reader_that_leaves():
    """`break` closes the sinks at once; they have seen what the reader saw, and no more."""
    notes = []
    for state in pr.watch(numbers(5), Spy(notes)):
        if int(state["iter"]) == 2:
            break

    assert ["Spy open", "Spy see 1", "Spy see 2", "Spy close GeneratorExit"] == notes


def test_a_reader_that_fails():
    """An exception in the body of the reader's own loop closes the sinks and is the reader's own."""
    notes = []

    def read():
        for _ in pr.watch(numbers(5), Spy(notes)):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read()

    assert "Spy close GeneratorExit" == notes[-1]


def test_a_loop_that_fails():
    """What the loop raises comes through, after the sinks were closed and told."""
    notes = []
    with pytest.raises(ArithmeticError, match="the loop failed"):
        runs.drain(pr.watch(numbers(1, fails=True), Spy(notes)))

    assert "Spy close ArithmeticError" == notes[-1]


@pytest.mark.parametrize("fails", ["open", "see"])
def test_a_sink_that_fails(fails):
    """Its error comes through, and the others are closed."""
    notes = []
    with pytest.raises(OSError, match=f"b failed to {fails}"):
        runs.drain(pr.watch(numbers(3), Spy(notes, "a"), Spy(notes, "b", fails), Spy(notes, "c")))

    assert "a close OSError" == notes[-1]
    assert ("c close OSError" in notes) == (fails == "see")


def test_closing_hides_no_error():
    """The loop's own error is what is raised; what failed while closing is a note on it; all are closed."""
    notes = []
    with pytest.raises(ArithmeticError, match="the loop failed") as caught:
        runs.drain(pr.watch(numbers(1, fails=True), Spy(notes, "a", "close"), Spy(notes, "b", "close")))

    told = [f"while the sink {name} was closed: OSError: {name} failed to close" for name in "ba"]
    assert told == caught.value.__notes__
    assert ["b close ArithmeticError", "a close ArithmeticError"] == notes[-2:]


def test_closing_errors_are_raised_when_nothing_else_is():
    """At the end of a run the first failure to close is raised, the others are its notes, and all are closed."""
    notes = []
    with pytest.raises(OSError, match="b failed") as caught:
        runs.drain(pr.watch(numbers(1), Spy(notes, "a", "close"), Spy(notes, "b", "close")))

    assert ["while the sink a was closed: OSError: a failed to close"] == caught.value.__notes__


def test_watching_twice_is_watching_once():
    """`b(watch(states, a))` is `watch(states, a, b)`: all sit at one desk."""
    together, apart = [], []
    runs.drain(pr.watch(numbers(2), Spy(together, "a"), Spy(together, "b")))
    runs.drain(Spy(apart, "b")(Spy(apart, "a")(numbers(2))))

    assert together == apart


def test_any_function_of_iterators_is_a_sink():
    """A generator function watches too."""
    seen = []

    def counting(states):
        for state in states:
            seen.append(int(state["iter"]))
            yield state

    assert 3 == int(runs.drain(pr.watch(numbers(3), counting, Spy()))["iter"])
    assert [1, 2, 3] == seen


@pytest.mark.parametrize("odd", [None, "log", 50])
def test_what_is_no_sink_is_refused(odd):
    """At once, by name."""
    with pytest.raises(TypeError, match="expected a sink"):
        pr.watch(numbers(3), odd)


def test_memories_come_back_by_label(tmp_path):
    """Each sink is given what it said, under its own name; equal names are numbered; a new one gets None."""
    runs.drain(pr.watch(numbers(2), Spy([], "a"), Spy([], "a"), pr.sinks.Checkpoint(tmp_path, every="last")))
    notes = []
    spies = Spy(notes, "a"), Spy(notes, "a"), Spy(notes, "b")
    runs.drain(pr.watch(iter([counted(iter=3)]), *spies, resume=tmp_path))

    assert {"a": "a", "a 2": "a"} == pr.checkpoint.read_manifest(pr.checkpoint.find(tmp_path)).memory
    assert ["a recall a", "a recall a", "b recall None"] == [note for note in notes if "recall" in note]


def test_resuming_with_another_state_is_refused(tmp_path):
    """A run that begins anew is not the one that the checkpoint speaks of; nothing on the disk is touched."""
    log = pr.sinks.Log(every=1, path=tmp_path / "log.jsonl", console=False)
    runs.drain(pr.watch(numbers(3), log, pr.sinks.Checkpoint(tmp_path, every="last")))
    before = (tmp_path / "log.jsonl").read_bytes()

    with pytest.raises(SinkError, match=r"iteration 3 of .*iter_00000003, got a state of iteration 1"):
        next(pr.watch(numbers(3), log, resume=tmp_path))
    assert before == (tmp_path / "log.jsonl").read_bytes()


def test_a_run_that_is_over_stays_as_it_is(tmp_path):
    """Resumed at its end, a run has no states, and its log is left alone."""
    log = pr.sinks.Log(every=2, path=tmp_path / "log.jsonl", console=False)
    runs.drain(pr.watch(numbers(3), log, pr.sinks.Checkpoint(tmp_path)))
    before = (tmp_path / "log.jsonl").read_bytes()
    assert [] == list(pr.watch(iter(()), log, pr.sinks.Checkpoint(tmp_path), resume=tmp_path))

    assert before == (tmp_path / "log.jsonl").read_bytes()


def test_a_leased_run_can_be_watched(tmp_path):
    """Sinks keep nothing of a lease: with all of them on, an old state is as empty as without."""
    sinks = pr.sinks.Log(every=5, console=False), pr.sinks.Checkpoint(tmp_path, every="3 iters"), pr.sinks.Progress()
    watched = pr.watch(runs.states(lease=True), *sinks)
    first = next(watched)
    held = first.hold()
    last = runs.drain(watched)

    with pytest.raises(pr.StaleState):
        first["iter"]
    assert (1, runs.ITERS) == (int(held["iter"]), int(last["iter"]))
    assert pr.digest(last) == pr.digest(runs.drain(runs.states()))


def test_sinks_are_values():
    """Comparable, printable, and open to `attrs.evolve`."""
    log = pr.sinks.Log(every=50, path="a/log.jsonl")

    assert log == pr.sinks.Log(every="50 iters", path=Path("a/log.jsonl"))
    assert "10" in repr(attrs.evolve(log, every=10))
    assert pr.sinks.Checkpoint("a") == pr.sinks.Checkpoint(Path("a"))
    assert pr.sinks.Progress(total="12 epochs") != pr.sinks.Progress(total=12)


def test_a_loss_that_is_not_finite_is_told(tmp_path):
    """One warning, which names the value; the log goes on."""
    path = tmp_path / "log.jsonl"
    values = [1.0, math.inf, math.nan, 2.0]
    made = [counted(iter=n, metrics={"loss": torch.tensor(v)}) for n, v in enumerate(values, 1)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        runs.drain(pr.watch(iter(made), pr.sinks.Log(every=1, path=path, console=False)))

    assert [1.0, "inf", "nan", 2.0] == [line["loss"] for line in runs.lines(path)]
    assert ["at iteration 2 the mean since the last line of the log is loss = inf"] == [
        str(warning.message).partition(";")[0] for warning in told
    ]
