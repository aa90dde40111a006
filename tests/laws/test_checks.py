"""The checks themselves: each finds the fault that it is for, and names the guilty place."""

from __future__ import annotations

import random
import time

import attrs
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import purerun as pr
from purerun.hooks import Hook
from purerun.state import seal, unseal
from purerun.testing import (
    LawBroken,
    check_everything,
    check_fresh_tensors,
    check_hooks_write_only_declared,
    check_purity,
    check_resume,
    check_shape_constancy,
    check_sinks_change_nothing,
    check_values_equal_lease,
    check_workers,
    counted,
    rebuilt,
)
from purerun.wrappers import Wrapper

X = torch.arange(40.0).reshape(20, 2).sin()


def squared(model, x):
    """Compute a loss."""
    return model(x).square().mean()


def make(loss=squared, model=None, **options):
    """Make a step and its first state."""
    step = pr.TrainStep(model or nn.Linear(2, 1), loss, pr.optim.SGD(lr=0.1, momentum=0.9), **options)
    return step, step.init(seed=0)


def fail(check, *args, **options) -> LawBroken:
    """Run a check that must fail."""
    with pytest.raises(LawBroken) as error:
        check(*args, **options)
    return error.value


class TestPurity:
    """What a step may not do."""

    @pytest.mark.parametrize(
        ("draw", "leaf"),
        [
            (lambda: random.random(), "Python's random"),  # noqa: PLW0108
            (lambda: float(np.random.rand()), "numpy's global generator"),
        ],
        ids=["python", "numpy"],
    )
    def test_drawing_from_a_generator_that_is_not_keyed(self, draw, leaf):
        """The generator is named; within the loss all three are keyed, outside of it none is."""
        inner, state = make(lambda model, x: squared(model, x) * draw())
        check_purity(inner, state, X)

        def step(state, batch):
            return inner(state.replace(hyper={"lr": draw()}), batch)

        broken = fail(check_purity, step, state, X)

        assert ("purity", 0, leaf) == (broken.law, broken.iteration, broken.leaf)
        assert "draw inside of the model or the loss" in broken.cause

    def test_changing_a_mode(self):
        """A global flag is named."""
        step, state = make(lambda model, x: (torch.set_grad_enabled(True), torch.manual_seed(0), squared(model, x))[-1])
        check_purity(step, state, X)
        threads = torch.get_num_threads()
        step, state = make(lambda model, x: (torch.set_num_threads(threads + 1), squared(model, x))[-1])
        try:
            assert "torch.get_num_threads()" == fail(check_purity, step, state, X).leaf
        finally:
            torch.set_num_threads(threads)

    def test_reading_a_clock(self):
        """It comes out when the step is called again."""
        step, state = make(lambda model, x: squared(model, x) * (time.perf_counter_ns() % 1000))

        assert "gave other bits when it was called again" in fail(check_purity, step, state, X).cause

    def test_remembering_in_a_closure(self):
        """So does a memory."""
        calls = []

        def loss(model, x):
            calls.append(1)
            return squared(model, x) * len(calls)

        step, state = make(loss)

        assert "when it was called again" in fail(check_purity, step, state, X).cause

    def test_reading_chance_without_drawing(self):
        """A seed taken from a global generator that is put back shows when that stands elsewhere."""
        inner, state = make()

        def step(state, batch):
            before = random.getstate()
            rate = random.random()
            random.setstate(before)
            return inner(state.replace(hyper={"lr": rate}), batch)

        assert "global generators stood elsewhere" in fail(check_purity, step, state, X).cause

    def test_writing_into_the_batch(self):
        """The entry is named."""
        step, state = make(lambda model, batch: squared(model, batch["x"].mul_(2)))
        broken = fail(check_purity, step, state, {"id": torch.zeros(20), "x": X.clone()})

        assert "batch/x" == broken.leaf
        assert "clone what it changes" in broken.cause

    def test_writing_into_the_state(self):
        """A plain function of the user's own may do it."""
        inner, state = make()

        def step(state, batch):
            state["params", "weight"].clamp_(-0.1, 0.1)
            return inner(state, batch)

        assert "state/params/weight" == fail(check_purity, step, state, X).leaf

    def test_changing_another_module(self):
        """A teacher that is left in training mode moves its statistics."""
        teacher = nn.BatchNorm1d(2)
        step, state = make(lambda model, x: squared(model, teacher(x)))
        broken = fail(check_purity, step, state, X)

        assert "loss.teacher" in broken.leaf
        assert "evaluation mode" in broken.cause

    def test_reading_the_module_s_own_weights(self):
        """A parameter that was taken out of the module is not the state's."""
        model = nn.Linear(2, 1)
        weight = model.weight.detach()
        step, state = make(lambda model, x: squared(model, x) + (x @ weight.t() * model(x)).mean(), model)

        assert "had other weights" in fail(check_purity, step, state, X).cause

    def test_halves_that_do_not_make_the_whole(self):
        """A step that does more than its halves."""

        @attrs.frozen(slots=False)
        class More(pr.TrainStep):
            def __call__(self, state, batch):
                return super().__call__(super().__call__(state, batch), batch)

        step = More(nn.Linear(2, 1), squared, pr.optim.SGD(lr=0.1))

        assert "update(state, grad(state, batch))" in fail(check_purity, step, step.init(0), X).cause


class TestSeparateness:
    """What two states may not share."""

    def test_passing_a_tensor_on(self):
        """The leaf is named, and where else it is."""
        step, state = make()

        def lazy(state, batch):
            draft = unseal(step(state, batch))
            draft["seed"] = state["seed"]
            return seal(draft)

        broken = fail(check_fresh_tensors, lazy, state, X)

        assert "seed" == broken.leaf
        assert "the state before it (`seed`)" in broken.cause

    def test_passing_a_view_on(self):
        """Another object, the same memory: writing tells."""
        step, state = make()

        def viewing(state, batch):
            draft = unseal(step(state, batch))
            draft["params"]["bias"] = state["params", "bias"].view(-1)
            return seal(draft)

        assert "params/bias" == fail(check_fresh_tensors, viewing, state, X).leaf

    def test_one_tensor_in_two_places(self):
        """Within one state too."""
        step, state = make()

        def doubling(state, batch):
            draft = unseal(step(state, batch))
            draft["copy"] = draft["params"]["bias"]
            return seal(draft)

        assert "the same state" in fail(check_fresh_tensors, doubling, state, X).cause


class Drawing(Dataset):
    """A dataset with a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return X[index] + torch.rand((), generator=self.generator)


@attrs.frozen
class Counting(Hook):
    """A hook that counts in a list instead of a slot."""

    calls: list = attrs.field(factory=list)
    writes = ("scores",)

    def __call__(self, state):
        self.calls.append(1)
        return state.replace(scores={"calls": float(len(self.calls))})

    def slots(self, state):
        return {"scores": {"calls": torch.zeros((), dtype=torch.float64)}}


class TestResume:
    """What is lost on the way through a checkpoint."""

    def test_data_with_a_memory(self):
        """The data are to blame."""
        step, state = make()
        loop = pr.TrainLoop(step, epochs=2)
        broken = fail(check_resume, loop, state, pr.Loader(Drawing(), batch_size=8))

        assert "the data are to blame" in broken.cause
        assert broken.iteration is not None

    def test_a_step_with_a_memory(self):
        """The step is to blame, and what it did is told."""
        inner, state = make()
        memory = [0.0]

        def step(state, batch):
            memory[0] += 0.01
            return inner(state.replace(hyper={"lr": memory[0]}), batch)

        broken = fail(check_resume, pr.TrainLoop(step, steps=(inner,), epochs=1), state, [X[:8], X[8:]])

        assert "the step is to blame: purity is broken" in broken.cause

    def test_a_hook_with_a_memory(self):
        """Neither is to blame: something is missing in the state, and the leaf where it shows is named."""
        step, state = make()
        loop = pr.TrainLoop(step, epochs=2, hooks=[Counting(every="1 iter")])
        broken = fail(check_resume, loop, state, [X[:8], X[8:]])

        assert ("scores/calls", 1) == (broken.leaf, broken.iteration)
        assert "not in the state" in broken.cause

    def test_a_lossy_format(self):
        """The function that saves and loads is under test too."""
        step, state = make()

        def half(state):
            kept = rebuilt(state)
            weight = kept["optim", "momentum_buffer", "weight"]
            return kept.replace(optim={"momentum_buffer": {"weight": weight.bfloat16().float()}})

        broken = fail(check_resume, pr.TrainLoop(step, epochs=2), state, [X[:8], X[8:]], through=half)

        assert "stopped after 1 of 4 iterations" in broken.cause
        assert 2 == broken.iteration

    def test_a_loop_that_ends_elsewhere(self):
        """A resumed run that is longer or shorter is told."""
        step, state = make()
        loop, other = pr.TrainLoop(step, iters=4), pr.TrainLoop(step, iters=5)
        longer = fail(check_resume, loop, state, [X], again=lambda: (other, [X]))
        shorter = fail(check_resume, other, state, [X], again=lambda: (loop, [X]))

        assert "went on for longer" in longer.cause
        assert "ended earlier" in shorter.cause

    def test_a_loop_that_is_over(self):
        """There is nothing to check."""
        step, state = make()
        with pytest.raises(ValueError, match="at least one iteration"):
            check_resume(pr.TrainLoop(step, iters=0), state, [X])

    @pytest.mark.parametrize("at", ["every", 2, [0, 3]])
    def test_a_good_run_passes(self, at):
        """Everywhere, at random places, at given ones."""
        step, state = make()
        check_resume(pr.TrainLoop(step, epochs=2), state, [X[:8], X[8:]], at=at)


def test_a_slot_that_appears_late():
    """Its name and what it became are told."""
    inner, state = make()

    def step(state, batch):
        after = inner(state, batch)
        return after.replace(late=1.0) if int(after["iter"]) > 1 else after

    broken = fail(check_shape_constancy, pr.TrainLoop(step, iters=3), state, [X])

    assert ("constancy of shapes", "late", 2) == (broken.law, broken.leaf, broken.iteration)
    assert "it was absent, and is torch.float64 []" in broken.cause


@attrs.frozen
class Lagging(Wrapper):
    """A wrapper that keeps the last weights, but forgets to clone them."""

    @property
    def slot(self):
        return "lag"

    def memory(self, step, draft):
        return {"old": draft["params"]["weight"].clone(), "gap": torch.zeros(())}

    def write(self, step, draft, grads):
        step.write(draft, grads)
        lag = draft[self.slot]
        lag["gap"] = (draft["params"]["weight"] - lag["old"]).sum()
        lag["old"] = draft["params"]["weight"]


def test_a_wrapper_that_shares_tensors_between_slots():
    """As values it works by luck, leased it does not."""
    step = pr.wrap(make()[0], Lagging())
    broken = fail(check_values_equal_lease, pr.TrainLoop(step, epochs=2), step.init(0), [X[:8], X[8:]])

    assert "lag/gap" == broken.leaf
    assert "other bits" in broken.cause


class ByWorker(Dataset):
    """A dataset whose samples depend on the process that makes them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        worker = torch.utils.data.get_worker_info()
        return torch.tensor(-1 if worker is None else worker.id)


def test_samples_that_depend_on_the_worker():
    """The place and the numbers of workers are told."""
    broken = fail(check_workers, pr.Loader(ByWorker(), batch_size=4), workers=(0, 2))

    assert "workers change nothing" == broken.law
    assert "reading epoch 0 from sample 0, 2 workers give another batch 0 than 0" in broken.cause


@attrs.frozen
class Writing(Hook):
    """A hook that misbehaves in one of several ways."""

    how: str = ""
    writes = ("scores",)

    def slots(self, state):
        return {"elsewhere": torch.zeros(())} if self.how == "slot" else {}

    def __call__(self, state):
        match self.how:
            case "undeclared":
                return state.replace(hyper={"lr": 0.5})
            case "in place":
                state["params", "w"].zero_()
            case "chance":
                return state.replace(scores={"x": random.random()})
            case "clock":
                return state.replace(scores={"x": time.perf_counter()})
        return state.replace(scores={"x": 1.0})

    def start(self, state):
        return state.replace(iter=5) if self.how == "start" else state


@pytest.mark.parametrize(
    ("how", "leaf", "words"),
    [
        ("undeclared", "hyper/lr", "Writing writes into it, but declares \\['scores'\\]"),
        ("slot", "elsewhere", "Writing makes the slot"),
        ("start", "iter", "at the start of a run"),
        ("in place", "params/w", "wrote into the state that it was given"),
        ("chance", "Python's random", "changed it"),
        ("clock", "scores/x", "when it was called again"),
    ],
)
def test_hooks_that_do_more_than_they_declare(how, leaf, words):
    """The hook and the leaf are named."""
    state = counted(epoch=1, params={"w": torch.ones(2)}, hyper={"lr": 0.1})
    with pytest.raises(LawBroken, match=words) as error:
        check_hooks_write_only_declared(Writing(how), state)

    assert leaf == error.value.leaf


def test_a_good_hook_passes():
    """It writes what it declares."""
    check_hooks_write_only_declared(Writing(), counted(epoch=1))


def test_sinks_that_touch_what_they_watch():
    """A sink that writes into a state, and one that loses states."""
    step, state = make()
    loop = pr.TrainLoop(step, epochs=2)

    def writing(states):
        for each in states:
            each["params", "weight"].mul_(0.5)
            yield each

    def losing(states):
        next(states)
        yield from states

    touched = fail(check_sinks_change_nothing, loop, state, [X[:8], X[8:]], writing)
    lost = fail(check_sinks_change_nothing, loop, state, [X[:8], X[8:]], losing)

    assert ("params/weight", 1) == (touched.leaf, touched.iteration)
    assert "4 states alone, and 3 under sinks" in lost.cause


def test_everything_checks_everything():
    """One call, and the first fault is raised."""
    step, state = make()
    data = pr.data.Tensors(X)
    step = attrs.evolve(step, loss=lambda model, batch: squared(model, batch[0]))
    state = step.init(0)
    check_everything(pr.TrainLoop(step, epochs=1), state, pr.Loader(data, batch_size=8), sinks=lambda states: states)
    hooked = pr.TrainLoop(step, epochs=1, hooks=[Counting()])

    assert "scores/calls" == fail(check_everything, hooked, state, pr.Loader(data, batch_size=8)).leaf
