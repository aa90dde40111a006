"""Transactional steps: a step that runs out of memory ends where the same step in smaller parts does.

The allocator is simulated (it counts the bytes that live and refuses more), and once real.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import weakref
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import purerun as pr
from purerun.testing.snapshot import of_state
from tests.wrappers.team import Team

X = torch.randn(16, 2, 4, generator=torch.Generator().manual_seed(0))
CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 8 bytes."


class Allocator(TorchDispatchMode):
    """Count the memory of what is computed while it lives, and refuse to go over a limit."""

    def __init__(self, limit=None, error=lambda: torch.OutOfMemoryError("simulated")):
        super().__init__()
        self.limit, self.error, self.live, self.peak, self.refused = limit, error, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "_lazy_clone" not in func.name():
            given = {tensor.untyped_storage()._cdata for tensor in tensors([args, kwargs])}
            for tensor in tensors(result):
                self._add(tensor.untyped_storage(), given)
        return result

    def _add(self, storage, given):
        key = storage._cdata
        if key in given or key in self.live:
            return
        used = sum(self.live.values()) + storage.nbytes()
        if self.limit is not None and used > self.limit:
            self.refused += 1
            raise self.error()
        self.peak = max(self.peak, used)
        self.live[key] = storage.nbytes()
        weakref.finalize(storage, self.live.pop, key, None)


def tensors(nest):
    """List the tensors of a nest."""
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, torch.Tensor)]


@contextmanager
def no_collector():
    """Leave cycles alone: what lives on in one is not let go."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def loss(model, x):
    """Compute a mean, and keep an error that comes by in a cycle with its own frame."""
    try:
        return model(x).square().mean()
    except Exception as error:
        kept = error  # noqa: F841  (the frame holds the error, the error its frame)
        raise


def make(*wrappers, optimizer=None):
    """Make a step whose activations are most of its memory, with buffers and chance."""
    torch.manual_seed(0)
    layers = [nn.Flatten(0, 1), nn.Linear(4, 128), nn.BatchNorm1d(128), nn.Dropout(0.5), nn.Tanh(), nn.Linear(128, 1)]
    return pr.wrap(pr.TrainStep(nn.Sequential(*layers), loss, optimizer or pr.optim.AdamW(lr=0.01)), *wrappers)


@cache
def peak(count):
    """Measure what a pass in `count` parts needs."""
    step = make(pr.Microbatch(count, on_oom="halve"))
    state = step.init()
    with no_collector(), Allocator() as allocator:
        step.grad(state, X)
    return allocator.peak


def halving(count):
    """Make the wrapper."""
    return pr.Microbatch(count, on_oom="halve")


ERRORS = {
    "accelerator": lambda: torch.OutOfMemoryError("simulated"),
    "cpu": lambda: RuntimeError(CPU_MESSAGE),
    "python": MemoryError,
}


@pytest.mark.parametrize(
    ("parts", "error"), [(2, "accelerator"), (4, "accelerator"), (16, "accelerator"), (4, "cpu"), (8, "python")]
)
def test_it_ends_where_the_parts_end(parts, error):
    """Memory for just so many parts: nothing of the failed passes is in the way, in the buffers or in the chance."""
    assert peak(parts) < peak(parts // 2)
    step, cut = make(halving(1)), make(halving(parts))
    state = step.init(3)
    before = of_state(state)
    with no_collector(), Allocator(peak(parts), ERRORS[error]) as allocator:
        after = step(state, X)

    assert allocator.refused == parts.bit_length() - 1
    assert before == of_state(state)
    assert parts == int(after["metrics", "microbatches"]) == int(after["microbatch", "parts"])
    assert pr.digest(cut(cut.init(3), X)) == pr.digest(after)

    plain = make(pr.Microbatch(parts))
    assert pr.digest(plain(plain.init(3), X)) == pr.digest(after.exclude("microbatch"))


@pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
@pytest.mark.parametrize("outer", [(), (pr.Accumulate(3), pr.EMA(0.9))], ids=["alone", "in windows"])
def test_a_run_goes_on_in_so_many_parts(outer, lease):
    """Refused in the first batch only; remembered in iterations without an update too, and in smaller batches."""

    def run(count, allocator):
        step, states = make(halving(count), *outer), []
        loop = pr.TrainLoop(step, iters=7, lease=lease)(step.init(), [X, X.flip(0), X[:3], X])
        for _ in range(7):
            with no_collector(), allocator:
                state = next(loop)
            states.append((pr.digest(state), int(state["metrics", "microbatches"])))
        return states

    roomy = Allocator()
    cut = run(4, roomy)
    tight = Allocator(roomy.peak)

    assert cut == run(1, tight)
    assert [4, 4, 3, 4, 4, 4, 3] == [parts for _, parts in cut]
    assert 2 == tight.refused


def test_how_many_parts_there_were_is_in_the_log(tmp_path):
    """From the batch on in which memory ran out."""
    step, log = make(halving(1)), tmp_path / "log.jsonl"
    loop = pr.TrainLoop(step, iters=3)(step.init(), [X, X.flip(0)])
    states = pr.watch(loop, pr.sinks.Log(every=1, path=log, console=False))
    next(states)
    with no_collector(), Allocator(peak(4)):
        next(states)
    next(states)
    states.close()

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [1, 4, 4] == [line["microbatches"] for line in lines]


@pytest.mark.parametrize("buffers", ["shard", "first", "mean"])
def test_all_shards_are_cut_alike(buffers):
    """Memory runs out in some shards: all are read again, so that no mixture is left."""
    parallel = pr.DataParallel(4, buffers=buffers)
    step, cut = make(halving(1), parallel), make(halving(2), parallel)
    state, first = step.init(), cut.init()
    cut.grad(first, X)  # takes the memory that is kept from then on
    with no_collector(), Allocator() as roomy:
        cut.grad(first, X)
    with no_collector(), Allocator(roomy.peak) as tight:
        grads = step.grad(state, X)

    assert tight.refused
    assert pr.digest(cut.update(first, cut.grad(first, X))) == pr.digest(step.update(state, grads))


def short_of_memory_in_one():
    """Two steps of which the second process has too little memory for; whether it had, and the digests.

    Half-way between what two parts need and what one does: the threads that send let go of their memory when they
    like, and a process that runs out of it where it exchanges is a process lost.
    """
    parallel, other, x = pr.DataParallel(4), distributed.get_rank() == 1, X.repeat(4, 1, 1)
    step, cut = make(halving(1), parallel), make(halving(2), parallel)
    state, expected = step.init(), cut.init()
    cut.grad(expected, x)
    with no_collector(), Allocator() as little:
        cut.grad(expected, x)
    with no_collector(), Allocator() as much:
        step.grad(state, x)
    limit = (little.peak + much.peak) // 2 if other else None
    with no_collector(), Allocator(limit) as tight:
        grads = step.grad(state, x)
    state, expected = step.update(state, grads), cut(expected, x)
    digests = [pr.digest(each) for each in (state, expected, step(state, x), cut(expected, x))]
    return bool(tight.refused) == other, digests


@pytest.fixture(scope="module")
def team():
    """Two processes."""
    made = Team(2)
    yield made
    made.close()


def test_all_processes_cut_alike(team):
    """One of two runs out of memory: both read again, and remember."""
    (first, digests), (second, others) = team(short_of_memory_in_one)

    assert first
    assert second
    assert digests == others
    assert digests[0::2] == digests[1::2]


def test_a_person_can_go_back():
    """The number of parts is a leaf of the state."""
    step = make(halving(1))
    state = step.init()
    with Allocator(peak(2)):
        state = step(state, X)

    assert [2, 1] == [
        int(step(each, X)["metrics", "microbatches"]) for each in (state, state.replace(microbatch={"parts": 1}))
    ]


def test_where_nothing_is_left_to_cut_the_error_is_the_user_s():
    """One sample a part is the end; the state is whole, leased or not."""
    step = make(halving(1))
    state = step.init()
    before = of_state(state)
    for lease in (False, True):
        with pytest.raises(torch.OutOfMemoryError) as caught, Allocator(1000):
            step.advance(state, X[:5], pr.data.Position(0, 5), lease=lease)

        assert "while a batch of 5 samples was read in 5 parts" in caught.value.__notes__

    assert before == of_state(state)


def test_other_errors_are_not_tried_again():
    """Twice would only hide them."""
    calls = []

    def broken(model, x):
        calls.append(len(x))
        raise RuntimeError("of another kind")

    step = pr.wrap(pr.TrainStep(nn.Linear(4, 1), broken, pr.optim.SGD(lr=0.1)), halving(1))
    with pytest.raises(RuntimeError, match="of another kind"):
        step(step.init(), X)

    assert [16] == calls


def test_without_leave_an_error_is_an_error():
    """The default raises at once."""
    step = make(pr.Microbatch(2))
    with pytest.raises(torch.OutOfMemoryError), Allocator(1000) as allocator:
        step(step.init(), X)

    assert 1 == allocator.refused
    assert "microbatches" not in step(step.init(), X)["metrics"].names()


def mapped(count):
    """Make a step whose one activation of 131072 rows is of 128 MB."""
    torch.manual_seed(0)
    step = pr.TrainStep(nn.Linear(1, 256), lambda model, x: model(x).tanh().mean(), pr.optim.SGD(lr=0.1))
    return pr.wrap(step, halving(count))


def short_of_real_memory():
    """Let the process take 96 MB more than it has; the parts of a step, its digest and that of the parts."""
    step, x = mapped(1), torch.ones(2**17, 1)
    state = step.init()
    step(state, x[:8])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 96 * 2**20, before[1]))
    try:
        after = step(state, x)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    parts = int(after["microbatch", "parts"])
    return parts, pr.digest(after), pr.digest(mapped(parts)(state.replace(microbatch={"parts": parts}), x))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
def test_a_real_limit_of_memory(team):
    """One activation of the whole batch does not fit; the allocator of the CPU says so in its own way."""
    for parts, tight, cut in team(short_of_real_memory):
        assert parts > 2
        assert cut == tight
