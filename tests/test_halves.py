"""The two halves of a step are public: what looks at gradients twice is a few lines of anybody's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import purerun as pr

RHO = 0.05


def loss(model, batch):
    """Compute the cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def network():
    """Make a network with buffers that the forward writes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches(count):
    """Make the batches of some steps."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(10, 4, generator=generator), torch.randint(3, (10,), generator=generator)) for _ in range(count)
    ]


def sam(step, rho=RHO):
    """Sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412): the gradient from a step uphill."""

    def advance(state, batch):
        grads = step.grad(state, batch)
        norm = torch.nn.utils.get_total_norm(grads.grads.values())
        uphill = {name: state["params", name] + rho / (norm + 1e-12) * grad for name, grad in grads.grads.items()}
        return step.update(state, step.grad(state.replace(params=uphill, buffers=grads.buffers), batch))

    return advance


def sam_by_hand(model, optimizer, batch, rho=RHO):
    """Take one step of the usual loop: two backward passes, the weights put back in between."""
    optimizer.zero_grad()
    loss(model, batch).backward()
    params = [*model.parameters()]
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm([param.grad for param in params])
        before = [param.clone() for param in params]
        for param in params:
            param.add_(rho / (norm + 1e-12) * param.grad)
    optimizer.zero_grad()
    loss(model, batch).backward()
    with torch.no_grad():
        for param, old in zip(params, before, strict=True):
            param.copy_(old)
    optimizer.step()


OPTIMIZERS = {
    "sgd": (
        pr.optim.SGD(lr=0.1, momentum=0.9),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
    ),
    "adamw": (pr.optim.AdamW(lr=0.01), lambda params: torch.optim.AdamW(params, lr=0.01, fused=True)),
}


@pytest.mark.parametrize("case", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_sam_is_the_hand_written_loop(case):
    """Bit for bit over 20 steps: weights, and the running means of both forward passes."""
    optimizer, oracle = case
    model = network()
    step, theirs = pr.TrainStep(model, loss, optimizer), copy.deepcopy(model).train()
    advance, torchs, state = sam(step), oracle(theirs.parameters()), step.init(seed=0)
    for batch in batches(20):
        state = advance(state, batch)
        sam_by_hand(theirs, torchs, batch)

        for name, tensor in theirs.state_dict().items():
            assert torch.equal(tensor, {**state["params"], **state["buffers"]}[name]), name


def test_sam_is_a_step_like_another():
    """A loop takes it, counts its iterations, and goes on from any of its states; wrappers are inside of it."""
    x, y = batches(1)[0]
    step = pr.wrap(pr.TrainStep(network(), loss, pr.optim.SGD(lr=0.1)), pr.EMA(0.9))
    loader = pr.Loader(pr.data.Tensors(x, y), batch_size=4, shuffle=True)
    loop = pr.TrainLoop(sam(step), steps=[step], epochs=2)
    states = [*loop(step.init(seed=0), loader)]

    assert [1, 2, 3, 4, 5, 6] == [int(state["iter"]) for state in states]
    for place, state in enumerate(states):
        assert [pr.digest(each) for each in states[place + 1 :]] == [pr.digest(each) for each in loop(state, loader)]


def test_a_line_search_in_a_few_lines():
    """Backtracking (Armijo 1966): the rate is halved until the loss falls by half of what the slope promises."""
    step, batch = pr.TrainStep(nn.Linear(4, 3), loss, pr.optim.SGD(lr=64.0)), batches(1)[0]
    state = step.init(seed=0)
    losses, rates = [], []
    for _ in range(5):
        grads, rate = step.grad(state, batch), 64.0
        slope = sum(float(grad.square().sum()) for grad in grads.grads.values())
        start = float(grads.metrics["loss"])
        while True:
            tried = step.update(state.replace(hyper={"lr": rate}), grads)
            if float(pr.loss_at(step, tried, batch)) <= start - 0.5 * rate * slope:
                break
            rate /= 2
        state = tried
        losses.append(start)
        rates.append(rate)

    assert sorted(losses, reverse=True) == losses
    assert losses[-1] < losses[0] / 1.2
    assert all(rate < 64 for rate in rates)
    assert 5 == int(state["iter"])
