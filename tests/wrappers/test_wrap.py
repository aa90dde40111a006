"""`wrap`: the innermost first, each wrapper's memory once, and a program that says the order."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import purerun as pr
from purerun.grad import Grads
from purerun.step import StepChanged
from purerun.testing import LawBroken, check_purity
from purerun.wrappers import Wrapper

X = torch.arange(12.0, dtype=torch.float64).reshape(6, 2).sin()
RATE = 0.125


def squared(model, x):
    """Compute a mean over samples."""
    return model(x).square().mean()


def make(model=None, **options):
    """Make a step in double precision."""
    torch.manual_seed(0)
    return pr.TrainStep(model or nn.Linear(2, 1).double(), squared, pr.optim.SGD(**{"lr": RATE, **options}))


def mapped(grads: Grads, change: Callable[[Tensor], Tensor]) -> Grads:
    """Change each gradient."""
    return attrs.evolve(grads, grads={name: change(grad) for name, grad in grads.grads.items()})


@attrs.frozen
class Scaled(Wrapper):
    """Gradients times a factor."""

    factor: float

    def read(self, step, draft, batch, how):
        return mapped(step.read(draft, batch, how), lambda grad: grad * self.factor)


@attrs.frozen
class Shifted(Wrapper):
    """Gradients plus one number."""

    by: float

    def read(self, step, draft, batch, how):
        return mapped(step.read(draft, batch, how), lambda grad: grad + self.by)


@attrs.frozen
class ScaledLate(Wrapper):
    """Gradients times a factor, on their way into the update."""

    factor: float

    def write(self, step, draft, grads):
        step.write(draft, mapped(grads, lambda grad: grad * self.factor))


@attrs.frozen
class ShiftedLate(Wrapper):
    """Gradients plus one number, on their way into the update."""

    by: float

    def write(self, step, draft, grads):
        step.write(draft, mapped(grads, lambda grad: grad + self.by))


@attrs.frozen
class Remembering(Wrapper):
    """A wrapper that breaks the law: what it does depends on how often it was called."""

    calls: list[int] = attrs.field(factory=list, repr=False)

    def read(self, step, draft, batch, how):
        self.calls.append(1)
        return mapped(step.read(draft, batch, how), lambda grad: grad * len(self.calls))


@pytest.mark.parametrize(
    ("wrappers", "expected"),
    [
        ([Scaled(2.0), Shifted(1.0)], lambda grad: 2 * grad + 1),
        ([Shifted(1.0), Scaled(2.0)], lambda grad: 2 * (grad + 1)),
        ([ScaledLate(2.0), ShiftedLate(1.0)], lambda grad: 2 * (grad + 1)),
        ([ShiftedLate(1.0), ScaledLate(2.0)], lambda grad: 2 * grad + 1),
        ([Scaled(2.0), Scaled(3.0)], lambda grad: 6 * grad),
    ],
    ids=["scale, shift", "shift, scale", "scale, shift late", "shift, scale late", "twice"],
)
def test_the_innermost_stands_first(wrappers, expected):
    """Gradients come out of the first wrapper first, and go into it last."""
    model = nn.Linear(2, 1).double()
    step = pr.wrap(make(model), *wrappers)
    squared(model, X).backward()
    after = step(step.init(), X)

    for name, param in model.named_parameters():
        assert torch.allclose(param.detach() - RATE * expected(param.grad), after["params", name], rtol=0, atol=1e-12)


def test_wrapping_is_calling():
    """The last wrapper is the outermost, and nothing around a step is the step."""
    step, inner, outer = make(), pr.Accumulate(2), pr.EMA(0.9)

    assert outer(inner(step)) == pr.wrap(step, inner, outer)
    assert pr.wrap(pr.wrap(step, inner), outer) == pr.wrap(step, inner, outer)
    assert step is pr.wrap(step)


@given(st.integers(-3, 2), st.sampled_from([0.0, 0.5]))
def test_a_scaled_gradient_is_a_scaled_rate(power, momentum):
    """Bit for bit, for powers of two and an optimizer that is linear in the gradient."""
    factor = 2.0**power
    plain = make(momentum=momentum, lr=RATE * factor)
    wrapped = pr.wrap(make(momentum=momentum), Scaled(factor))
    expected, actual = plain.init(), wrapped.init()
    for _ in range(3):
        expected, actual = plain(expected, X), wrapped(actual, X)

        assert torch.equal(expected["metrics", "loss"], actual["metrics", "loss"])
        assert all(torch.equal(leaf, actual["params", name]) for name, leaf in expected["params"].items())


@pytest.mark.parametrize(
    "wrappers",
    [[Scaled(0.5)], [Scaled(0.5), pr.Accumulate(2), pr.EMA(0.9)], [pr.EMA(0.9), pr.Accumulate(2), Scaled(0.5)]],
    ids=["alone", "innermost", "outermost"],
)
def test_a_wrapper_of_one_s_own_is_pure(wrappers):
    """Around a model with buffers and chance, and beside the wrappers of the package."""
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    step = pr.wrap(make(model, momentum=0.9), *wrappers)

    check_purity(step, step.init(seed=1), X)


def test_a_wrapper_that_remembers_is_found():
    """The law of purity names what came out different."""
    step = pr.wrap(make(), Remembering())
    with pytest.raises(LawBroken, match="purity is broken at iteration 0"):
        check_purity(step, step.init(), X)


def test_a_program_says_its_order():
    """Two orders, or two options, are two programs; equal ones are one."""
    pair = [pr.Accumulate(2), pr.EMA(0.9)]
    programs = [pair, pair[::-1], pair[:1], [pr.Accumulate(3), pair[1]], [Scaled(2.0), *pair], []]
    marks = {bytes(pr.wrap(make(), *wrappers).init()["fingerprint"].tolist()) for wrappers in programs}

    assert len(programs) == len(marks)
    assert torch.equal(
        pr.wrap(make(), *pair).fingerprint(), pr.wrap(make(), pr.Accumulate(2), pr.EMA(0.9)).fingerprint()
    )


def test_going_on_in_another_order_is_told():
    """The slots fit, the program is another one."""
    first, second = pr.wrap(make(), pr.Accumulate(2), pr.EMA(0.9)), pr.wrap(make(), pr.EMA(0.9), pr.Accumulate(2))
    with pytest.warns(StepChanged, match="wrapper: EMA"):
        states = list(pr.TrainLoop(second, iters=1)(first.init(), [X]))

    assert torch.equal(second.fingerprint(), states[-1]["fingerprint"])


@pytest.mark.parametrize(
    ("wrappers", "kind"),
    [
        ([pr.EMA(0.9), pr.EMA(0.99)], "EMA"),
        ([pr.EMA(0.9), pr.Accumulate(2), pr.EMA(0.9)], "EMA"),
        ([pr.Accumulate(2), Scaled(2.0), pr.Accumulate(2)], "Accumulate"),
    ],
    ids=["side by side", "apart", "accumulations"],
)
def test_one_memory_has_one_owner(wrappers, kind):
    """The same kind of wrapper twice is refused, however far apart."""
    with pytest.raises(ValueError, match=f"expected no {kind} around {kind}: .* wrap once with it"):
        pr.wrap(make(), *wrappers)


@pytest.mark.parametrize(
    "given", [pr.EMA, "ema", None, [pr.EMA(0.9)], make()], ids=["class", "text", "none", "list", "step"]
)
def test_what_is_no_wrapper_is_refused(given):
    """Also behind a good one, when the step is made."""
    with pytest.raises(TypeError, match=r"expected a wrapper such as pr.Accumulate\(4\), got"):
        pr.wrap(make(), pr.Accumulate(2), given)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pr.Clip(1), pr.Clip(norm=1.0)),
        (pr.Clip(value=1), pr.Clip(value=1.0)),
        (pr.Clip(adaptive=1), pr.Clip(adaptive=1.0)),
        (pr.EMA(0), pr.EMA(0.0)),
        (pr.AnnealedEMA(0, gamma=2), pr.AnnealedEMA(0.0, gamma=2.0)),
        (pr.Dropout(0), pr.Dropout(0.0)),
        (pr.Precision("float16", scale=128, init_scale=2), pr.Precision("float16", scale=128.0, init_scale=2.0)),
    ],
)
def test_equal_wrappers_are_one_program(one, other):
    """A whole number is a number."""
    step = pr.TrainStep(nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))

    assert one == other
    assert torch.equal(pr.wrap(step, one).fingerprint(), pr.wrap(step, other).fingerprint())
