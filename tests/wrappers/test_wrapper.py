"""The frame of wrappers: what stands around a step, in any order, knowing nothing of its neighbours."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.state import StateError
from purerun.testing.snapshot import of_state
from purerun.wrappers import Wrapper

X = torch.arange(12.0).reshape(6, 2).sin()


def make(**options):
    """Make a small step."""
    torch.manual_seed(0)
    return pr.TrainStep(nn.Linear(2, 1), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1), **options)


@attrs.frozen
class Nothing(Wrapper):
    """A wrapper that does nothing."""


@attrs.frozen
class Halving(Wrapper):
    """A wrapper around `grad`: half the gradient."""

    def read(self, step, draft, batch, how):
        grads = step.read(draft, batch, how)
        return attrs.evolve(grads, grads={name: grad / 2 for name, grad in grads.grads.items()})


@attrs.frozen
class Counting(Wrapper):
    """A wrapper around `update`, with a memory."""

    name: str = "calls"

    @property
    def slot(self):
        return self.name

    def memory(self, step, draft):
        return {"count": torch.zeros((), dtype=torch.int64)}

    def write(self, step, draft, grads):
        step.write(draft, grads)
        draft[self.slot]["count"] += 1


@attrs.frozen
class Refusing(Wrapper):
    """A wrapper that refuses gradients before anything is written."""

    def vet(self, step, draft, grads):
        step.vet(draft, grads)
        raise ArithmeticError("not these")


def test_a_wrapper_that_does_nothing_changes_nothing():
    """But the program."""
    plain, wrapped = make(), pr.wrap(make(), Nothing())
    first, second = plain(plain.init(), X), wrapped(wrapped.init(), X)

    assert pr.digest(first) == pr.digest(second)
    assert plain.trained == wrapped.trained
    assert not torch.equal(first["fingerprint"], second["fingerprint"])


def test_a_wrapper_around_grad():
    """Half the gradient is half the way."""
    plain, wrapped = make(), pr.wrap(make(), Halving())
    start = plain.init()
    whole, half = plain(start, X), wrapped(wrapped.init(), X)

    for name, leaf in start["params"].items():
        assert torch.allclose((leaf + whole["params", name]) / 2, half["params", name], atol=1e-7)


def test_a_wrapper_around_update_has_a_slot():
    """At full shape from `init` on."""
    step = pr.wrap(make(), Counting(), Counting("others"))
    states = [step.init()]
    for _ in range(2):
        states.append(step(states[-1], X))

    assert [(0, 0), (1, 1), (2, 2)] == [(int(s["calls", "count"]), int(s["others", "count"])) for s in states]


def test_wrappers_compose_through_both_doors():
    """A call is update after grad, through all layers."""
    step = pr.wrap(make(), Halving(), Counting(), pr.EMA(0.5), pr.Accumulate(2))
    state = step.init()
    halves = step.update(state, step.grad(state, X))

    assert of_state(step(state, X)) == of_state(halves)


def test_a_refusal_leaves_the_state_whole():
    """In lease mode too."""
    step = pr.wrap(make(), Counting(), Refusing())
    state = step.init()
    looks = of_state(state)
    for lease in (False, True):
        with pytest.raises(ArithmeticError, match="not these"):
            step.advance(state, X, pr.data.Position(0, 1), lease=lease)

    assert looks == of_state(state)


def test_a_slot_is_taken_once():
    """Wrapping twice with one wrapper is refused by name."""
    with pytest.raises(StateError, match="expected no `calls` in the state"):
        pr.wrap(make(), Counting(), Counting()).init()


@pytest.mark.parametrize("given", [pr.EMA, None, lambda step: step], ids=["class", "none", "function"])
def test_what_is_no_wrapper_is_refused(given):
    """With an example of one."""
    with pytest.raises(TypeError, match="expected a wrapper such as"):
        pr.wrap(make(), given)


def test_the_loop_s_end_reaches_every_layer():
    """`finish` goes through wrappers that have nothing to close."""
    step = pr.wrap(make(), pr.Accumulate(2), Nothing(), pr.EMA(0.5), Counting())
    state = step(step.init(), X)
    after = step.finish(state)

    assert (1, 0) == (int(state["accumulate", "count"]), int(after["accumulate", "count"]))
    assert not torch.equal(state["params", "weight"], after["params", "weight"])
    assert of_state(after) == of_state(step.finish(after))


def test_a_wrapped_step_is_a_value():
    """Equal parts make equal steps, and the text tells the layers."""
    model = nn.Linear(2, 1)

    def loss(model, x):
        return model(x).mean()

    first, second = (pr.wrap(pr.TrainStep(model, loss, pr.optim.SGD(lr=0.1)), pr.EMA(0.5)) for _ in range(2))

    assert first == second
    assert first != pr.wrap(pr.TrainStep(model, loss, pr.optim.SGD(lr=0.1)), pr.EMA(0.6))
    assert first.text().endswith(
        "wrapper: EMA(begin=0, by='iter', interval=1, buffers='copy', decay=0.5)",
    )
