"""Loops: counters in normal form, one state an iteration, begun anywhere, left anywhere."""

from __future__ import annotations

import gc
import weakref
from itertools import islice

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun.batch import BatchError
from purerun.hooks import Hook
from purerun.loop import EmptyLoader
from purerun.step import StepChanged
from purerun.testing.snapshot import of_state


def linear(**options):
    """Make a small step."""
    torch.manual_seed(0)
    return pr.TrainStep(nn.Linear(1, 1), lambda model, b: model(b[0]).square().mean(), pr.optim.SGD(lr=0.1), **options)


def data(samples, **options):
    """Make a loader whose samples are numbered."""
    return pr.Loader(pr.data.Tensors(torch.arange(samples).float().unsqueeze(1)), **options)


def counters(state):
    """Read where a state stands."""
    return tuple(int(state[name]) for name in ("iter", "epoch", "cursor"))


@attrs.frozen
class Noting(Hook):
    """A hook that notes where it was called, as base 10 digits in its slot."""

    slot: str = "noted"

    @property
    def writes(self):
        return (self.slot,)

    def slots(self, state):
        return {self.slot: {"sum": torch.zeros((), dtype=torch.int64)}}

    def start(self, state):
        return state.replace({self.slot: {"sum": 7}})

    def __call__(self, state):
        return state.replace({self.slot: {"sum": int(state[self.slot, "sum"]) * 10 + int(state["iter"])}})


@given(st.integers(1, 12), st.integers(1, 5), st.booleans(), st.integers(1, 3))
def test_counters_by_epoch(samples, size, drop_last, epochs):
    """`iter` counts calls, `epoch` and `cursor` are in normal form, and the loop ends with the last epoch."""
    if drop_last and samples < size:
        size = samples
    ends = list(range(size, samples + 1, size)) + ([samples] if samples % size and not drop_last else [])
    places = [(epoch, end) if end != ends[-1] else (epoch + 1, 0) for epoch in range(epochs) for end in ends]
    expected = [(count + 1, *place) for count, place in enumerate(places)]
    loop = pr.TrainLoop(linear(), epochs=epochs)

    assert expected == [
        counters(each) for each in loop(loop.step.init(), data(samples, batch_size=size, drop_last=drop_last))
    ]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 8), st.integers(0, 8))
def test_iterations_are_cut_anywhere(samples, size, first, second):
    """A loop to n after a loop to k stands where a loop to n stands."""
    step, loader = linear(), data(samples, batch_size=size, shuffle=True)
    state, end = step.init(3), first + second
    whole = list(pr.TrainLoop(step, iters=end)(state, loader))
    begun = list(pr.TrainLoop(step, iters=first)(state, loader))
    rest = list(pr.TrainLoop(step, iters=end)(begun[-1] if begun else state, loader))

    assert list(map(of_state, whole)) == list(map(of_state, begun + rest))


def test_every_sample_is_read_once_an_epoch():
    """Whatever is stopped and begun again with another batch size."""
    step, state, seen = linear(), linear().init(1), []

    def noting(state, batch):
        seen.extend(int(x) for x in batch[0])
        return step(state, batch)

    for size, count in ((3, 2), (5, 1), (2, 3), (4, 9)):
        run = pr.TrainLoop(noting, steps=(step,), epochs=1)(state, data(20, batch_size=size, shuffle=True))
        state = list(islice(run, count))[-1]

    assert list(range(20)) == sorted(seen)
    assert (1, 0) == counters(state)[1:]


def test_a_changed_batch_size_can_drop_the_tail():
    """With `drop_last`, what is left of an epoch and too short is dropped, and the next epoch begins."""
    step = linear()
    state = next(iter(pr.TrainLoop(step, epochs=2)(step.init(), data(10, batch_size=8, drop_last=False))))
    after = next(iter(pr.TrainLoop(step, epochs=3)(state, data(10, batch_size=4, drop_last=True))))

    assert (1, 0, 8) == counters(state)
    assert (2, 1, 4) == counters(after)


class TestEnds:
    """Where a loop begins and ends."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [({}, "got neither"), ({"epochs": 1, "iters": 1}, "got both"), ({"iters": -1}, "at least 0, got -1")],
        ids=["neither", "both", "negative"],
    )
    def test_one_end_is_asked_for(self, options, words):
        """Epochs or iterations."""
        with pytest.raises(ValueError, match=words):
            pr.TrainLoop(linear(), **options)

    @pytest.mark.parametrize("options", [{"epochs": 1}, {"iters": 2}, {"iters": 0}, {"epochs": 0}], ids=str)
    def test_a_run_that_is_over_gives_nothing(self, options):
        """And opens no loader."""
        step = linear()
        state = list(pr.TrainLoop(step, epochs=1)(step.init(), data(8, batch_size=4)))[-1]

        assert [] == list(pr.TrainLoop(step, **options)(state, data(8, batch_size=4)))

    def test_leaving_a_loop_closes_its_loader(self):
        """`break`, closing and errors."""
        closed = []

        @attrs.frozen
        class Source(pr.data.Foreign):
            def open(self, seed, *, shard=0, shards=1):
                session = super().open(seed, shard=shard, shards=shards)
                session.close = lambda: closed.append(1)
                return session

        step = linear()
        run = pr.TrainLoop(step, epochs=3)(step.init(), Source([(torch.ones(2, 1),)] * 2))
        next(run)
        run.close()
        with pytest.raises(BatchError, match="mat1"):
            list(pr.TrainLoop(step, epochs=3)(step.init(), Source([(torch.ones(2, 3),)])))

        assert [1, 1] == closed

    def test_nothing_happens_before_the_first_state_is_asked_for(self):
        """Only what is given is checked."""
        step = linear()
        run = pr.TrainLoop(step, epochs=1)(step.init(), iter([(torch.ones(1, 1),)]))

        assert (1, 1, 0) == counters(next(run))


class TestErrors:
    """What a loop is given wrongly."""

    @pytest.mark.parametrize(
        ("loader", "kind", "words"),
        [
            ([], ValueError, "expected at least one batch, got an empty list"),
            (iter([]), ValueError, "expected an epoch with at least one batch.*only once"),
            (data(3, batch_size=4, drop_last=True), ValueError, "at least one batch.*drop_last=False"),
            (5, TypeError, "expected a Loader or an iterable of batches, got int"),
        ],
        ids=["list", "iterator", "drop last", "number"],
    )
    def test_a_loader_without_a_batch(self, loader, kind, words):
        """The remedy is told."""
        step = linear()
        with pytest.raises((kind, EmptyLoader), match=words):
            list(pr.TrainLoop(step, epochs=1)(step.init(), loader))

    def test_an_iterator_that_runs_dry(self):
        """It can be run through only once."""
        step = linear()
        with pytest.raises(ValueError, match="only once"):
            list(pr.TrainLoop(step, epochs=2)(step.init(), ((torch.ones(1, 1),) for _ in range(2))))

    def test_what_is_no_state(self):
        """A dict, for one."""
        with pytest.raises(TypeError, match=r"expected a State, got dict"):
            pr.TrainLoop(linear(), epochs=1)({}, data(4, batch_size=2))

    def test_a_step_that_is_no_function(self):
        """It is refused when the loop is made, or says so at the first call."""
        with pytest.raises(TypeError):
            list(pr.TrainLoop(5, epochs=1)(linear().init(), data(4, batch_size=2)))

    def test_a_function_that_gives_no_state(self):
        """A forgotten `return`."""
        with pytest.raises(TypeError, match="return a State, got NoneType"):
            list(pr.TrainLoop(lambda state, batch: None, epochs=1)(linear().init(), data(4, batch_size=2)))

    def test_another_step_is_noticed(self):
        """With a warning in a script."""
        state = linear().init()
        with pytest.warns(StepChanged, match="- unused: 'raise'"):
            list(pr.TrainLoop(linear(unused="zero"), iters=1)(state, data(4, batch_size=2)))


class TestHooks:
    """Functions of states between the step and the yield."""

    def test_they_run_in_their_order_after_the_counters_have_advanced(self):
        """What the first writes, the second reads; both are in the state that is yielded."""
        step = linear()

        @attrs.frozen
        class Copying(Hook):
            writes = ("copy",)

            def slots(self, state):
                return {"copy": torch.zeros((), dtype=torch.int64)}

            def __call__(self, state):
                return state.replace(copy=state["noted", "sum"])

        loop = pr.TrainLoop(step, iters=3, hooks=[Noting(every="1 iter"), Copying(every="1 iter")])
        states = list(loop(step.init(), data(4, batch_size=2)))

        assert [71, 712, 7123] == [int(each["copy"]) for each in states]

    def test_start_runs_once_in_a_run(self):
        """Before its very first iteration, not after a resume."""
        step = linear()
        loop = pr.TrainLoop(step, iters=3, hooks=[Noting(every="1 iter")])
        first = next(iter(loop(step.init(), data(4, batch_size=2))))
        rest = list(loop(first, data(4, batch_size=2)))

        assert [71, 712, 7123] == [int(each["noted", "sum"]) for each in (first, *rest)]

    def test_the_last_iteration_is_finished_before_they_run(self):
        """A hook sees what a checkpoint will hold."""
        step = pr.wrap(linear(), pr.Accumulate(2))

        @attrs.frozen
        class Looking(Hook):
            writes = ("open",)

            def slots(self, state):
                return {"open": torch.zeros((), dtype=torch.int64)}

            def __call__(self, state):
                return state.replace(open=state["accumulate", "count"])

        loop = pr.TrainLoop(step, iters=3, hooks=[Looking(every="1 iter")])

        assert [1, 0, 0] == [int(each["open"]) for each in loop(step.init(), data(6, batch_size=2))]

    def test_slots_are_there_from_the_first_state(self):
        """Also when the hook is due later, and those that a state has already stay."""
        step = linear()
        loop = pr.TrainLoop(step, iters=2, hooks=[Noting(every="2 iters")])
        states = list(loop(step.init(), data(4, batch_size=2)))
        again = list(attrs.evolve(loop, iters=3)(states[0], data(4, batch_size=2)))

        assert [7, 72] == [int(each["noted", "sum"]) for each in states]
        assert [72, 72] == [int(each["noted", "sum"]) for each in again]


class TestMemory:
    """Whose a state is."""

    def test_a_loop_keeps_no_state_but_the_last(self):
        """As values too: what the caller drops is gone."""
        step = linear()
        run = pr.TrainLoop(step, iters=20)(step.init(), data(8, batch_size=2))
        seen = []
        for state in run:
            seen.append(weakref.ref(state["params", "weight"]))
            del state
        gc.collect()

        assert 0 == sum(each() is not None for each in seen)

    def test_the_given_state_stays_its_caller_s(self):
        """Under a lease too."""
        step = linear()
        start = step.init()
        looks = of_state(start)
        for lease in (False, True):
            list(pr.TrainLoop(step, iters=3, lease=lease)(start, data(8, batch_size=2)))

        assert looks == of_state(start)

    def test_a_lease_is_over_when_the_next_state_is_taken(self):
        """And not before; the last one stays."""
        step = linear()
        run = pr.TrainLoop(step, iters=3, lease=True)(step.init(), data(8, batch_size=2))
        first = next(run)
        assert 1 == int(first["iter"])
        held = first.hold()
        second = next(run)
        with pytest.raises(pr.StaleState, match="hold"):
            first["iter"]
        run.close()

        assert (1, 2) == (int(held["iter"]), int(second["iter"]))

    @pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
    def test_an_error_leaves_the_last_state_whole(self, lease):
        """It can be saved, looked at, and gone on from."""
        calls = []

        def loss(model, batch):
            calls.append(1)
            if len(calls) == 3:
                raise OSError("no more")
            return model(batch[0]).square().mean()

        step = attrs.evolve(linear(), loss=loss)
        step = pr.wrap(step, pr.Accumulate(2), pr.EMA(0.9))
        start, last = step.init(), None
        with pytest.raises(OSError, match="no more"):
            for state in pr.TrainLoop(step, iters=5, lease=lease)(start, data(8, batch_size=2)):
                last = state
        rest = [counters(each) for each in pr.TrainLoop(step, iters=5, lease=lease)(last, data(8, batch_size=2))]

        assert (2, 0, 4) == counters(last)
        assert [(3, 0, 6), (4, 1, 0), (5, 1, 2)] == rest

    def test_two_loops_side_by_side(self):
        """Runs of one step, interleaved: neither notices the other."""
        step = linear()
        loader = data(8, batch_size=2, shuffle=True)
        alone = [[of_state(each) for each in pr.TrainLoop(step, iters=4)(step.init(seed), loader)] for seed in (1, 2)]
        runs = [pr.TrainLoop(step, iters=4, lease=True)(step.init(seed), loader) for seed in (1, 2)]
        together = [tuple(map(of_state, pair)) for pair in zip(*runs, strict=True)]

        assert alone == [list(run) for run in zip(*together, strict=True)]
