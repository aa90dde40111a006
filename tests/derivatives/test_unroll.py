"""Derivatives through steps: those of the validation loss equal central differences, whatever one differentiates by."""

from __future__ import annotations

import weakref
from functools import partial

import attrs
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import purerun as pr
from purerun.testing.optimizers import OPTIMIZERS
from tests.derivatives.training import batches, difference, loss, make, network, points

STEPS = 20
VAL = points(16, "val")
TRACED = {name: case.optimizer for name, case in OPTIMIZERS.items() if case.traced}
SCHEDULED = [pr.schedule.Linear(0.1, end=5, by="iter"), pr.schedule.Cosine(period=STEPS, end=STEPS, by="iter")]


def scheduled(optimizer):
    """Schedule the learning rate of an optimizer that has one under that name."""
    return SCHEDULED if "lr" in optimizer.hyper() else []


def agree(validation, hyper, oracle, *, rel=1e-4):
    """Check the derivative by every hyper-parameter against differences of what an oracle computes."""
    derived = torch.func.grad(validation)(hyper)
    for name, value in hyper.items():
        width = 1e-6 * max(float(value), 1e-3)
        expected = float(difference(lambda moved, name=name: oracle({**hyper, name: moved}), value, width=width))

        assert expected == pytest.approx(float(derived[name]), rel=rel, abs=1e-9), name
    return derived


@pytest.mark.parametrize("optimizer", TRACED.values(), ids=TRACED.keys())
def test_hypergradients_equal_central_differences(optimizer):
    """Of the validation loss after 20 scheduled steps, by every hyper-parameter of every optimizer that traces.

    The differences are those of the kernels, which the derivative knows nothing of.
    """
    optimizer = attrs.evolve(optimizer, weight_decay=0.05) if getattr(optimizer, "weight_decay", 1) == 0 else optimizer
    kernels = make(optimizer, engine="autograd", schedule=scheduled(optimizer))
    step, data = attrs.evolve(kernels, engine="func"), batches(STEPS)
    state = step.init(seed=0)

    def validation(hyper, step=step):
        return pr.loss_at(step, pr.unroll(step, state.replace(hyper=hyper), data), VAL)

    derived = agree(validation, dict(state["hyper"].items()), partial(validation, step=kernels))

    rates = [float(value) for name, value in derived.items() if name.rpartition(".")[2] in ("lr", "weight_decay")]
    assert all(rates), "the loss depends on the learning rate and on the decay"


@pytest.mark.parametrize("optimizer", TRACED.values(), ids=TRACED.keys())
def test_a_weight_without_a_gradient_makes_no_nan(optimizer):
    """Of an input that is always 0 the weights have gradients of exactly 0: the square root there has no derivative."""
    kernels = make(optimizer, engine="autograd")
    step = attrs.evolve(kernels, engine="func")
    data = [{**batch, "x": batch["x"] * torch.tensor([1.0, 0.0, 1.0])} for batch in batches(4)]
    state = step.init(seed=0)

    def validation(hyper, step=step):
        return pr.loss_at(step, pr.unroll(step, state.replace(hyper=hyper), data), VAL)

    name = next(name for name in state["hyper"].names() if name.rpartition(".")[2] == "lr")
    agree(validation, {name: state["hyper", name]}, partial(validation, step=kernels))


@pytest.mark.parametrize("recompute", [0, 1, 4, 7])
def test_all_ways_to_differentiate_a_run_agree(recompute):
    """Stretches that are computed again give the derivatives of those that are kept, dropout and BatchNorm included."""
    step = make(pr.optim.AdamW(lr=0.02), model=network(nn.BatchNorm1d(5), nn.Dropout(0.3)), schedule=SCHEDULED)
    state, data = step.init(seed=3), batches(10)

    def validation(given):
        return pr.loss_at(step, pr.unroll(step, state.replace(given), data, recompute=recompute), VAL)

    given = {"hyper": dict(state["hyper"].items()), "params": dict(state["params"].items())}
    end, kept = state.replace(given), torch.func.grad(lambda given: _plain(step, state.replace(given), data))(given)
    for batch in data:
        end = step(end, batch)
    derived = torch.func.grad(validation)(given)

    torch.testing.assert_close(derived, kept, rtol=1e-12, atol=1e-15)
    assert pr.digest(end) == pr.digest(pr.unroll(step, state, data, recompute=recompute))


def _plain(step, state, data):
    for batch in data:
        state = step(state, batch)
    return pr.loss_at(step, state, VAL)


@pytest.mark.parametrize("recompute", [0, 2])
def test_by_the_first_weights(recompute):
    """The derivative by where a run starts, as meta-learning takes it."""
    step, data = make(pr.optim.Adam(lr=0.05)), batches(5)
    state = step.init(seed=0)

    def validation(weight):
        first = state.replace(params={"0.weight": weight})
        return pr.loss_at(step, pr.unroll(step, first, data, recompute=recompute), VAL)

    weight = state["params", "0.weight"]
    torch.testing.assert_close(
        torch.func.grad(validation)(weight), difference(validation, weight), rtol=1e-4, atol=1e-9
    )


@pytest.mark.parametrize("recompute", [0, 2])
def test_by_the_data(recompute):
    """The derivative by a weight of each sample, as learned data weights take it."""
    step, data = make(), batches(5, size=4)
    state = step.init(seed=0)

    def validation(weights):
        weighted = [{**batch, "weight": own} for batch, own in zip(data, weights, strict=True)]
        return pr.loss_at(step, pr.unroll(step, state, weighted, recompute=recompute), VAL)

    weights = torch.linspace(0.5, 1.5, 20, dtype=torch.float64).reshape(5, 4)
    expected = difference(validation, weights)
    torch.testing.assert_close(torch.func.grad(validation)(weights), expected, rtol=1e-4, atol=1e-9)


def test_twice():
    """A second derivative through the steps, as an implicit method or Newton's takes it."""
    step, data = make(), batches(3)
    state = step.init(seed=0)

    def validation(lr, recompute=0):
        return pr.loss_at(step, pr.unroll(step, state.replace(hyper={"lr": lr}), data, recompute=recompute), VAL)

    lr = state["hyper", "lr"]
    second = torch.func.grad(torch.func.grad(validation))
    expected = difference(torch.func.grad(validation), lr, width=1e-5)

    torch.testing.assert_close(second(lr), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.func.grad(torch.func.grad(lambda lr: validation(lr, 2)))(lr), second(lr))


@pytest.mark.parametrize(
    "wrappers",
    [
        [pr.Accumulate(2)],
        [pr.EMA(0.9)],
        [pr.Clip(norm=0.5)],
        [pr.Microbatch(2)],
        [pr.SkipNonFinite()],
        [pr.Precision("bfloat16")],
        [pr.SWA()],
        [pr.Microbatch(2), pr.Accumulate(3), pr.EMA(0.9)],
    ],
    ids=["accumulate", "ema", "clip", "microbatch", "skip", "precision", "swa", "three"],
)
@pytest.mark.parametrize("recompute", [0, 3])
def test_through_wrappers(wrappers, recompute):
    """What stands around a step is differentiated with it."""
    step, data = pr.wrap(make(pr.optim.AdamW(lr=0.02, weight_decay=0.1)), *wrappers), batches(6)
    state = step.init(seed=0)

    def validation(hyper):
        return pr.loss_at(step, pr.unroll(step, state.replace(hyper=hyper), data, recompute=recompute), VAL)

    assert float(agree(validation, {"lr": state["hyper", "lr"]}, validation)["lr"])


def test_several_learning_rates_at_once():
    """Mapped over a hyper-parameter, each derivative is the one that it has alone."""
    step, data = make(), batches(4)
    state = step.init(seed=0)

    def validation(lr, recompute):
        return pr.loss_at(step, pr.unroll(step, state.replace(hyper={"lr": lr}), data, recompute=recompute), VAL)

    rates = torch.tensor([0.01, 0.1, 0.2], dtype=torch.float64)
    alone = torch.stack([torch.func.grad(validation)(lr, 0) for lr in rates])
    for recompute in (0, 2):
        mapped = torch.vmap(torch.func.grad(validation), in_dims=(0, None))(rates, recompute)
        torch.testing.assert_close(mapped, alone, rtol=1e-10, atol=0)


class Living(TorchDispatchMode):
    """Counts the bytes of the memory that operations have made and that still lives."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage):
        size = storage.nbytes()
        self.known[storage] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size):
        self.now -= size


def test_recomputing_saves_memory():
    """With activations that are far larger than the state, 24 steps need the memory of a few."""
    step, x = make(pr.optim.SGD(lr=0.01), model=nn.Linear(3, 2).double()), points(2000, "large")
    state = step.init(seed=0)

    def peak(recompute):
        def validation(lr):
            return pr.loss_at(step, pr.unroll(step, state.replace(hyper={"lr": lr}), [x] * 24, recompute=recompute), x)

        with Living() as living:
            torch.func.grad(validation)(state["hyper", "lr"])
        return living.most

    assert peak(1) < peak(0) / 4
    assert peak(4) < peak(0) / 2


def test_a_step_of_the_other_engine_has_no_derivative():
    """It is refused: the kernels read the learning rate as a number, and its derivative would silently be 0."""
    step, data = make(engine="autograd"), batches(2)
    state = step.init(seed=0)

    with pytest.raises(pr.StateError, match="engine='func'"):
        torch.func.grad(lambda lr: pr.loss_at(step, pr.unroll(step, state.replace(hyper={"lr": lr}), data), VAL))(
            state["hyper", "lr"]
        )


@pytest.mark.parametrize("mapped", [False, True])
def test_a_derivative_past_the_arguments_is_refused(mapped):
    """What is computed again does not see a tensor in a closure: its derivative would silently be 0."""
    scale = [torch.ones((), dtype=torch.float64)]
    step, data = make(loss=lambda model, batch: scale[0] * loss(model, batch)), batches(2)
    state = step.init(seed=0)

    def validation(value, recompute):
        scale[0] = value
        return pr.loss_at(step, pr.unroll(step, state, data, recompute=recompute), VAL)

    def several(values, recompute):
        return torch.vmap(validation, in_dims=(0, None))(values, recompute).sum()

    function, given = (several, torch.ones(3).double()) if mapped else (validation, torch.tensor(1.0).double())
    assert torch.func.grad(function)(given, 0).all()
    with pytest.raises(ValueError, match="comes in through the state or the batches"):
        torch.func.grad(function)(given, 1)


@pytest.mark.parametrize("recompute", [-1, True])
def test_a_stretch_is_a_number_of_steps(recompute):
    """Anything else is refused."""
    step = make()
    with pytest.raises(ValueError, match="expected recompute to be a number of steps"):
        pr.unroll(step, step.init(), batches(1), recompute=recompute)
