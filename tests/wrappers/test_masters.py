"""Masters: the bits of a hand-written loop with bfloat16 parameters and float32 copies that the optimizer moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.testing.snapshot import of_state

OPTIMIZERS = {
    "sgd": (pr.optim.SGD(lr=1e-3, momentum=0.9), lambda params: torch.optim.SGD(params, 1e-3, 0.9, fused=True)),
    "adamw": (pr.optim.AdamW(lr=1e-4), lambda params: torch.optim.AdamW(params, 1e-4, fused=True)),
    "adagrad": (pr.optim.Adagrad(lr=1e-4), lambda params: torch.optim.Adagrad(params, 1e-4, fused=True)),
}


def network(dtype=torch.bfloat16):
    """Make a small network of 16 bits, of which one layer has 32; the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8, dtype=dtype), nn.BatchNorm1d(8, dtype=dtype), nn.ReLU(), nn.Linear(8, 2, dtype=dtype), Last()
    )


class Last(nn.Module):
    """A layer in float32."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x):
        return self.linear(x.float())


def loss(model, x):
    """Compute a mean over samples."""
    return model(x).square().mean()


def batches(count, dtype=torch.bfloat16):
    """Make batches."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, generator=draw).to(dtype) for _ in range(count)]


def masters(state):
    """Put together parameters and what their masters have beyond them."""
    rest = state["masters"]
    return {name: param.float() + rest.get(name, 0) for name, param in state["params"].items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masters_are_those_of_a_hand_written_loop(optimizer, dtype):
    """Parameters, masters and buffers have the same bits over many steps that the parameters alone would not feel."""
    ours, theirs = OPTIMIZERS[optimizer]
    model = network(dtype)
    copies = [param.detach().float() for param in model.parameters()]
    optim = theirs(copies)
    step = pr.wrap(pr.TrainStep(network(dtype), loss, ours), pr.Masters())
    state = step.init()
    for x in batches(60, dtype):
        grads = torch.autograd.grad(loss(model, x), [*model.parameters()])
        for copy, grad in zip(copies, grads, strict=True):
            copy.grad = grad.float()
        optim.step()
        with torch.no_grad():
            for param, copy in zip(model.parameters(), copies, strict=True):
                param.copy_(copy)
        state = step(state, x)

        kept = masters(state)
        for (name, param), copy in zip(model.named_parameters(), copies, strict=True):
            assert torch.equal(param, state["params", name])
            assert torch.equal(copy, kept[name])
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, state["buffers", name])


def test_small_steps_add_up():
    """Of which each one is lost in bfloat16."""
    model, x = nn.Linear(1, 1, bias=False).bfloat16(), torch.ones(1, 1, dtype=torch.bfloat16)
    plain = pr.TrainStep(model, lambda m, x: m(x).float().sum(), pr.optim.SGD(lr=1e-4))
    state = plain.init().replace(params={"weight": torch.ones(1, 1, dtype=torch.bfloat16)})
    kept = pr.wrap(plain, pr.Masters()).adopt(state)
    for _ in range(500):
        state, kept = plain(state, x), pr.wrap(plain, pr.Masters())(kept, x)

    assert (1.0, 0.94921875) == (state["params", "weight"].item(), kept["params", "weight"].item())
    assert 0.95 == pytest.approx(masters(kept)["weight"].item(), abs=1e-4)


def test_what_stands_inside_is_float32():
    """Slots of the optimizer, windows and averages; what stands outside has 16 bits."""
    inner = pr.TrainStep(network(), loss, pr.optim.SGD(lr=0.1, momentum=0.9))
    step = pr.wrap(inner, pr.EMA(0.5), pr.Accumulate(2), pr.Masters())
    state = step.init()
    first = {path: leaf.dtype for path, leaf in pr.state.leaves(state)}
    for x in batches(3):
        state = step(state, x)

    assert (
        torch.float32 == state["ema", "params", "0.weight"].dtype == state["optim", "momentum_buffer", "0.weight"].dtype
    )
    assert torch.float32 == state["accumulate", "grads", "0.weight"].dtype
    assert torch.bfloat16 == state["params", "0.weight"].dtype == step.grad(state, x).grads["0.weight"].dtype
    assert first == {path: leaf.dtype for path, leaf in pr.state.leaves(state)}


def test_a_part_window_moves_masters_too():
    """At the end of a loop."""
    inner = pr.TrainStep(network(), loss, pr.optim.SGD(lr=1e-4))
    whole, part = pr.wrap(inner, pr.Accumulate(1), pr.Masters()), pr.wrap(inner, pr.Accumulate(2), pr.Masters())
    x = batches(1)[0]
    expected, actual = whole(whole.init(), x), part.finish(part(part.init(), x))

    assert of_state(expected.select("params", "masters")) == of_state(actual.select("params", "masters"))


def test_replaced_parameters_are_what_goes_on():
    """No older master takes them back."""
    step = pr.wrap(pr.TrainStep(network(), loss, pr.optim.SGD(lr=1e-4)), pr.Masters())
    state = step(step.init(), batches(1)[0])
    new = torch.full((8, 4), 0.25, dtype=torch.bfloat16)
    after = step(state.replace(params={"0.weight": new}), batches(1)[0])

    torch.testing.assert_close(new, after["params", "0.weight"], rtol=1e-2, atol=1e-2)


def test_a_model_in_float32_is_refused():
    """It has no use for masters."""
    step = pr.wrap(pr.TrainStep(nn.Linear(2, 1), loss, pr.optim.SGD()), pr.Masters())
    with pytest.raises(ValueError, match="expected a model with bfloat16 or float16 parameters, got none"):
        step.init()
