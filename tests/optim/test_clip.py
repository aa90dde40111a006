"""Clipping equals torch's, writes into nothing, reports the norm, and is a part of a chain."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from purerun.optim import (
    SGD,
    Adam,
    Applied,
    Bucket,
    ClipAdaptive,
    ClipNorm,
    ClipValue,
    Group,
    Torch,
    Transform,
    chain,
)

shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=5)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64])


def some(shapes, dtype, scale):
    """Make gradients of some shapes: numbers around `scale`."""
    return {
        f"p{place}": (torch.arange(torch.Size(shape).numel()).double().add(place).sin() * scale)
        .reshape(shape)
        .to(dtype)
        for place, shape in enumerate(shapes)
    }


def with_grads(grads):
    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads.values()]
    for param, grad in zip(params, grads.values(), strict=True):
        param.grad = grad.clone()
    return params


def applied(clip, grads, *, traced=False):
    return clip.apply({}, grads, {}, clip.hyper(), traced=traced)


@settings(deadline=None, max_examples=60)
@given(
    shapes, dtypes, st.sampled_from([1e-3, 1.0, 1e4]), st.sampled_from([0.5, 3.0]), st.sampled_from([1, 2.0, math.inf])
)
def test_clip_norm_equals_torch(shapes, dtype, scale, max_norm, norm_type):
    """Gradients and the reported norm have the bits of clip_grad_norm_; what was given stays."""
    assume(norm_type != math.inf or all(0 not in shape for shape in shapes))  # torch refuses these too
    grads = some(shapes, dtype, scale)
    before = {name: grad.clone() for name, grad in grads.items()}
    params = with_grads(grads)
    total = clip_grad_norm_(params, max_norm, norm_type)
    done = applied(ClipNorm(max_norm, norm_type), grads)

    assert torch.equal(total, done.report["grad_norm"])
    for name, param in zip(grads, params, strict=True):
        assert torch.equal(param.grad, done.grads[name])
        assert param.grad.dtype == done.grads[name].dtype
        assert torch.equal(before[name], grads[name])


@settings(deadline=None, max_examples=40)
@given(shapes, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.sampled_from([0.1, 2.0]))
def test_clip_value_equals_torch(shapes, dtype, value):
    """Gradients have the bits of clip_grad_value_; what was given stays."""
    grads = some(shapes, dtype, 3.0)
    before = {name: grad.clone() for name, grad in grads.items()}
    params = with_grads(grads)
    clip_grad_value_(params, value)
    done = applied(ClipValue(value), grads)

    for name, param in zip(grads, params, strict=True):
        assert torch.equal(param.grad, done.grads[name])
        assert torch.equal(before[name], grads[name])


@pytest.mark.parametrize("clip", [ClipNorm(0.5), ClipNorm(0.5, 1.0), ClipNorm(0.5, math.inf), ClipValue(0.1)])
def test_traced_form_equals_the_other(clip):
    """The form that can be mapped makes the same gradients, for numbers and for tensors."""
    grads = some([(3, 4), (5,), ()], torch.float64, 2.0)
    expected = applied(clip, grads)
    numbers = applied(clip, grads, traced=True)
    hyper = {name: torch.tensor(value, dtype=torch.float64) for name, value in clip.hyper().items()}
    tensors = clip.apply({}, grads, {}, hyper, traced=True)

    torch.testing.assert_close(numbers.grads, expected.grads, rtol=1e-14, atol=0)
    torch.testing.assert_close(tensors.grads, expected.grads, rtol=1e-14, atol=0)
    torch.testing.assert_close(tensors.report, expected.report, rtol=1e-14, atol=0)


def test_an_adaptive_clip_is_by_units():
    """Rows of a weight, all that belongs to one output of a convolution, a whole vector: by hand, in both forms."""
    params = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "k": torch.ones(2, 1, 2, 2), "b": torch.tensor([0.6, 0.8])}
    grads = {"w": torch.tensor([[0.0, 2.0], [3.0, 4.0]]), "k": torch.ones(2, 1, 2, 2), "b": torch.tensor([0.0, 1.0])}
    grads["k"][1] *= 0.01
    clip = ClipAdaptive(0.1, eps=0.5)
    expected = {
        "w": torch.tensor([[0.0, 0.5], [0.03, 0.04]]),
        "k": torch.tensor([0.1, 0.01]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2),
        "b": torch.tensor([0.0, 0.1]),
    }
    for traced in (False, True):
        done = clip.apply(params, grads, {}, clip.hyper(), traced=traced)
        torch.testing.assert_close(done.grads, expected)
    skipping = ClipAdaptive(0.1, eps=0.5, skip=("k", "b*")).apply(params, grads, {}, clip.hyper(), traced=False)

    assert [True, True] == [skipping.grads[name] is grads[name] for name in ("k", "b")]
    torch.testing.assert_close(skipping.grads["w"], expected["w"])


def test_an_adaptive_clip_of_nothing():
    """A gradient of zero stays; a bad one stays bad, for others to see."""
    clip, params = ClipAdaptive(0.1), {"a": torch.ones(2), "b": torch.ones(2)}
    grads = {"a": torch.zeros(2), "b": torch.tensor([1.0, math.inf])}
    done = clip.apply(params, grads, {}, clip.hyper(), traced=False)

    assert [0.0, 0.0] == done.grads["a"].tolist()
    assert not done.grads["b"].isfinite().all()


def test_not_a_number():
    """A NaN spreads, as with torch, or raises where that was asked for."""
    grads = {"a": torch.tensor([float("nan"), 1.0])}
    assert applied(ClipNorm(1.0), grads).grads["a"].isnan().all()
    with pytest.raises(RuntimeError, match="non-finite"):
        applied(ClipNorm(1.0, error_if_nonfinite=True), grads)


def test_a_chain_reports_its_norm():
    """What the transforms measure comes out of an update, of a write and of a trace."""
    clipped, params = chain(clip=ClipNorm(1.0), sgd=SGD(lr=0.1)), {"w": torch.zeros(2)}
    grads, buckets = {"w": torch.tensor([3.0, 4.0])}, [Bucket(("w",), clipped.hyper())]
    reports: list = [{}, {}, {}]
    clipped.update(params, grads, clipped.init(params), report=reports[0])
    clipped.trace(params, grads, clipped.init(params), buckets, report=reports[1])
    clipped.write(params, grads, clipped.init(params), buckets, report=reports[2])

    assert [{"grad_norm": 5.0}] * 3 == [{name: float(value) for name, value in report.items()} for report in reports]
    assert params["w"].tolist() == pytest.approx([-0.06, -0.08])


def test_two_clips_have_two_norms():
    """A second measurement of one name stands behind the name of its part."""
    clipped = chain(first=ClipNorm(2.0), second=ClipNorm(1.0), sgd=SGD())
    report: dict = {}
    params = {"w": torch.zeros(2)}
    clipped.update(params, {"w": torch.tensor([3.0, 4.0])}, {}, report=report)

    assert {"grad_norm": 5.0, "second.grad_norm": 2.0} == {
        name: pytest.approx(float(value)) for name, value in report.items()
    }


def test_hyper_parameters_of_a_chain():
    """The optimizer's names stay, a transform's stand behind its own, and both work as leaves."""
    clipped, params = chain(clip=ClipNorm(1.0), adam=Adam(lr=0.1)), {"w": torch.ones(2)}
    grads = {"w": torch.tensor([3.0, 4.0])}
    expected, _ = Adam(lr=0.1).update(params, {"w": grads["w"] * 0.4 / (1 + 2e-7)}, Adam().init(params), {"eps": 1.0})
    actual, _ = clipped.update(params, grads, clipped.init(params), {"clip.max_norm": 2.0, "eps": 1.0})

    assert list(clipped.hyper()) == ["lr", "beta1", "beta2", "eps", "weight_decay", "clip.max_norm"]
    torch.testing.assert_close(actual, expected)


def test_a_chain_is_a_value():
    """It compares by its parts and their order, and takes the groups of its optimizer."""
    groups = (Group("b*", lr_mult=2.0),)
    a = chain(clip=ClipNorm(1.0), value=ClipValue(1.0), sgd=SGD(groups=groups))
    b = chain(value=ClipValue(1.0), clip=ClipNorm(1.0), sgd=SGD(groups=groups))

    assert a == chain(clip=ClipNorm(1.0), value=ClipValue(1.0), sgd=SGD(groups=groups))
    assert a != b
    assert hash(a) != hash(b)
    assert a.groups == groups
    assert attrs.evolve(a, parts=b.parts) == b


@attrs.frozen
class Momentum(Transform):
    """A transform with a memory."""

    keep: float = attrs.field(default=0.5, metadata={"hyper": True})

    def init(self, params):
        return {"mean": {name: torch.zeros_like(param) for name, param in params.items()}}

    def apply(self, params, grads, slots, hyper, *, traced):
        mean = {name: grad + hyper["keep"] * slots["mean"][name] for name, grad in grads.items()}
        return Applied(mean, {"mean": mean}, {})


def test_a_transform_may_have_a_memory():
    """Its slots lie under its name and go on from step to step, in both forms."""
    ours, theirs, params = chain(mean=Momentum(), sgd=SGD(lr=0.1)), SGD(lr=0.1, momentum=0.5), {"w": torch.ones(3)}
    a, b, c = (params, ours.init(params)), (params, theirs.init(params)), (params, ours.init(params))
    for turn in range(4):
        grads = {"w": torch.arange(3.0) + turn}
        a, b = ours.update(a[0], grads, a[1]), theirs.update(b[0], grads, b[1])
        c = ours.trace(c[0], grads, c[1], [Bucket(("w",), ours.hyper())])

    torch.testing.assert_close(a[0], b[0])
    torch.testing.assert_close(c[0], b[0])
    torch.testing.assert_close(a[1]["mean"]["mean"], b[1]["momentum_buffer"])


def test_a_chain_transforms_what_a_closure_returns():
    """A line search sees clipped gradients."""
    seen = []
    lbfgs = chain(clip=ClipValue(0.01), lbfgs=Torch(torch.optim.LBFGS, max_iter=2))
    params = {"w": torch.ones(3)}

    def closure(at):
        seen.append(at["w"])
        return at["w"].square().sum(), {"w": 2 * at["w"]}

    moved, _ = lbfgs.update(params, {"w": torch.full((3,), 2.0)}, lbfgs.init(params), closure=closure)

    assert lbfgs.closes
    assert len(seen) == 2
    torch.testing.assert_close(moved["w"], torch.full((3,), 0.99))


@pytest.mark.parametrize(
    ("parts", "error", "said"),
    [
        ({}, TypeError, "to end with one optimizer"),
        ({"clip": ClipNorm(1.0)}, TypeError, "to end with one optimizer"),
        ({"a": SGD(), "b": SGD()}, TypeError, "expected transforms such as ClipNorm"),
        ({"a": ClipNorm(1.0), "b": chain(sgd=SGD())}, TypeError, "to end with one optimizer"),
        ({"a.b": ClipNorm(1.0), "c": SGD()}, ValueError, "identifiers"),
    ],
)
def test_what_is_no_chain_is_refused(parts, error, said):
    """A chain is transforms and then one optimizer, with names that can be keys."""
    with pytest.raises(error, match=said):
        chain(**parts)
