"""Clip: the bits of torch's own clipping in a hand-written loop, and the norms on both sides of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

import purerun as pr
from purerun.testing.snapshot import of_state


def network():
    """Make a small network, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.ReLU(), nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def loss(model, x):
    """Compute a mean over samples."""
    return model(x).square().mean()


def batches(count):
    """Make batches of very different sizes of gradients."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(5, 2, 4, generator=draw) * 10.0 ** (place % 3 - 1) for place in range(count)]


def adaptive(params, clipping=0.01, eps=1e-3):
    """Clip as the authors' code does: github.com/google-deepmind/deepmind-research, nfnets/optim.py."""

    def norms(x):
        if x.squeeze().ndim <= 1:
            return x.square().sum().sqrt()
        return x.square().sum(dim=tuple(range(1, x.ndim)), keepdim=True).sqrt()

    for param in params:
        most = norms(param.detach()).clamp_min(eps) * clipping
        norm = norms(param.grad)
        param.grad = torch.where(norm < most, param.grad, param.grad * (most / norm.clamp_min(1e-6)))


CLIPS = {
    "norm": (pr.Clip(norm=0.05), lambda params: clip_grad_norm_(params, 0.05)),
    "value": (pr.Clip(value=0.01), lambda params: clip_grad_value_(params, 0.01)),
    "adaptive": (pr.Clip(adaptive=0.02), lambda params: adaptive(params, 0.02)),
    "adaptive, not the last": (
        pr.Clip(adaptive=0.02, skip=("5.*",)),
        lambda params: adaptive([*params][:-2], 0.02),
    ),
}


@pytest.mark.parametrize("clip", CLIPS)
def test_a_clipped_run_is_that_of_a_hand_written_loop(clip):
    """By norm and by value bit for bit, adaptive to rounding; the norms are those of torch."""
    ours, theirs = CLIPS[clip]
    model, clipped = network(), 0
    optim = torch.optim.SGD(model.parameters(), 0.1, 0.9, fused=True)
    step = pr.wrap(pr.TrainStep(network(), loss, pr.optim.SGD(lr=0.1, momentum=0.9)), ours)
    state = step.init()
    close = (1e-5, 1e-6) if "adaptive" in clip else (0, 0)
    for x in batches(30):
        optim.zero_grad()
        loss(model, x).backward()
        before = get_total_norm([param.grad for param in model.parameters()])
        theirs(model.parameters())
        after = get_total_norm([param.grad for param in model.parameters()])
        optim.step()
        state = step(state, x)
        clipped += after < before

        torch.testing.assert_close(before, state["metrics", "grad_norm"], rtol=1e-6 + 10 * close[0], atol=0)
        torch.testing.assert_close(after, state["metrics", "grad_norm_clipped"], rtol=1e-5, atol=0)
        for name, param in model.named_parameters():
            torch.testing.assert_close(param.detach(), state["params", name], rtol=close[0], atol=close[1])
    assert clipped > 5


def test_where_it_stands():
    """Inside of a window its mean is clipped; outside of it, each batch is."""
    inner, given = pr.TrainStep(network(), loss, pr.optim.SGD(lr=1.0)), batches(2)
    ends, expected = [], []
    for wrappers in ((pr.Clip(norm=0.01), pr.Accumulate(2)), (pr.Accumulate(2), pr.Clip(norm=0.01))):
        step = pr.wrap(inner, *wrappers)
        ends.append(step(step(step.init(), given[0]), given[1])["params"])
    for each in (False, True):
        model = network()
        parts = [torch.autograd.grad(loss(model, x), [*model.parameters()]) for x in given]
        if each:
            parts = [_clipped(part) for part in parts]
        means = [(first + second) / 2 for first, second in zip(*parts, strict=True)]
        means = means if each else _clipped(means)
        expected.append({name: p.detach() - m for (name, p), m in zip(model.named_parameters(), means, strict=True)})

    for theirs, ours in zip(expected, ends, strict=True):
        torch.testing.assert_close(theirs, dict(ours.items()), rtol=1e-5, atol=1e-7)
    assert not torch.equal(ends[0]["0.weight"], ends[1]["0.weight"])


def _clipped(grads):
    holders = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for holder, grad in zip(holders, grads, strict=True):
        holder.grad = grad.clone()
    clip_grad_norm_(holders, 0.01)
    return [holder.grad for holder in holders]


@pytest.mark.parametrize("clip", CLIPS)
def test_gradients_that_are_used_again_stay(clip):
    """Clipping writes into gradients, but never into those that the caller of `update` keeps."""
    step = pr.wrap(pr.TrainStep(network(), loss, pr.optim.SGD(lr=0.1)), CLIPS[clip][0])
    state = step.init()
    grads = step.grad(state, batches(3)[2])
    before = {name: grad.clone() for name, grad in grads.grads.items()}
    first, second = step.update(state, grads), step.update(state, grads)

    assert of_state(first) == of_state(second)
    assert all(torch.equal(grad, before[name]) for name, grad in grads.grads.items())


def test_gradients_that_share_memory_are_clipped_once():
    """The backward pass of a sum makes one tensor for both."""
    model = nn.ParameterDict({"a": torch.zeros(2), "b": torch.zeros(2)})
    step = pr.TrainStep(model, lambda m, x: ((m["a"] + m["b"]) * x).sum(), pr.optim.SGD(lr=1.0))
    state = pr.wrap(step, pr.Clip(norm=1.0))
    state = state(state.init(), torch.tensor([3.0, 4.0]))

    for name in "ab":
        torch.testing.assert_close(-torch.tensor([3.0, 4.0]) / math.sqrt(50), state["params", name])


def test_reports_keep_their_names():
    """In iterations that do not update, the norms are those of the last update."""
    step = pr.wrap(pr.TrainStep(network(), loss, pr.optim.SGD(lr=0.1)), pr.Clip(norm=0.01), pr.Accumulate(2))
    states = [step.init()]
    for x in batches(4):
        states.append(step(states[-1], x))
    norms = [state["metrics", "grad_norm"].item() for state in states[1:]]

    assert 1 == len({tuple(state["metrics"].keys()) for state in states[1:]})
    assert (0.0, norms[1]) == (norms[0], norms[2])
    assert 0.01 == pytest.approx(states[3]["metrics", "grad_norm_clipped"].item(), rel=1e-3)


def test_a_named_step_reports_under_its_name():
    """So that two of them do not hide each other's."""
    step = pr.wrap(pr.TrainStep(network(), loss, pr.optim.SGD(lr=0.1), name="critic"), pr.Clip(norm=1.0))
    state = step(step.init(), batches(1)[0])

    assert {"critic.loss", "critic.lr", "critic.grad_norm", "critic.grad_norm_clipped"} == set(state["metrics"].keys())


@pytest.mark.parametrize("options", [{}, {"norm": 1.0, "value": 1.0}])
def test_one_way_to_clip(options):
    """None and two are refused."""
    with pytest.raises(ValueError, match=r"expected Clip\(norm=...\), Clip\(value=...\) or Clip\(adaptive=...\)"):
        pr.Clip(**options)


def test_what_is_skipped_is_said_of_units():
    """The other ways take all gradients together."""
    with pytest.raises(ValueError, match=r"expected `skip` with Clip\(adaptive=...\) only, got it with norm"):
        pr.Clip(norm=1.0, skip=("fc.*",))


@pytest.mark.parametrize("options", [{"norm": -1.0}, {"value": float("nan")}, {"adaptive": 0.0}])
def test_a_threshold_out_of_range_is_refused(options):
    """When it is made."""
    with pytest.raises(ValueError, match=r"is out of range|should be a number of at least 0"):
        pr.Clip(**options)


def test_a_single_pattern_is_not_its_letters():
    """A text is one pattern; anything else is none."""
    assert ("head.*",) == pr.Clip(adaptive=0.1, skip="head.*").skip
    with pytest.raises(ValueError, match="`skip` should be glob patterns"):
        pr.Clip(adaptive=0.1, skip=3)


def test_a_line_search_is_refused():
    """The chain clips all gradients that it takes."""
    step = pr.TrainStep(nn.Linear(2, 1), loss, pr.optim.Torch(torch.optim.LBFGS))
    with pytest.raises(ValueError, match=r"pr.optim.chain\(clip="):
        pr.wrap(step, pr.Clip(norm=1.0))


@pytest.mark.cuda
@pytest.mark.parametrize("clip", CLIPS)
def test_an_accelerator_is_not_waited_for(clip):
    """Norms stay where they are."""
    step = pr.wrap(pr.TrainStep(network().cuda(), loss, pr.optim.SGD(lr=0.1, momentum=0.9)), CLIPS[clip][0])
    host = pr.wrap(pr.TrainStep(network(), loss, pr.optim.SGD(lr=0.1, momentum=0.9)), CLIPS[clip][0])
    state, expected = step.init(), host.init()
    for x in batches(3):
        expected, x = host(expected, x), x.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            state = step(state, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    for name, param in expected["params"].items():
        torch.testing.assert_close(param, state["params", name].cpu(), rtol=1e-3, atol=1e-5)


def test_what_is_left_alone_is_named_by_one_pattern_or_several():
    """One text is one pattern, not its letters; a pattern that matches nothing is refused."""
    for clip in (pr.Clip(adaptive=0.1, skip="head.*"), pr.optim.ClipAdaptive(0.1, skip="head.*")):
        assert clip.skip == ("head.*",)
    step = pr.TrainStep(nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    with pytest.raises(ValueError, match="skip"):
        pr.wrap(step, pr.Clip(adaptive=0.1, skip="head.*"))
    assert pr.wrap(step, pr.Clip(adaptive=0.1, skip="weight")).trained == step.trained
