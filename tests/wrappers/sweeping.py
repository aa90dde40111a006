"""Models, batches and comparisons for the tests of sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import purerun as pr

MEMBERS = 3
RATES = [0.3, 0.1, 0.01]
SGD = pr.optim.SGD(lr=0.1, momentum=0.9)


class Scales(nn.Module):
    """A model without a matrix product: no kernel in it sums in another order for many members than for one."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter((torch.arange(18.0).reshape(3, 6) * 0.7).cos())
        self.bias = nn.Parameter(torch.zeros(3))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.drop = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, 6] to [n, 3]."""
        return torch.tanh((self.drop(x)[:, None, :] * self.weight).sum(-1) + self.bias) * self.scale


def mlp(*layers: nn.Module) -> nn.Module:
    """Make a model of matrix products."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 17), *layers, nn.Tanh(), nn.Linear(17, 3))


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Compute the squared error."""
    return F.mse_loss(model(batch[0]), batch[1])


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Make batches, the same ones every time."""
    draw = torch.Generator().manual_seed(0)
    both = [[torch.randn(8, size, generator=draw, dtype=torch.float64) for size in (6, 3)] for _ in range(count)]
    return [(x.to(dtype), y.to(dtype)) for x, y in both]


def make_step(model: nn.Module | None = None, optimizer: pr.optim.Optimizer = SGD, **options: Any) -> pr.TrainStep:
    """Make a step that can be mapped."""
    return pr.TrainStep(Scales() if model is None else model, loss, optimizer, engine="func", **options)


def follow(sweep: pr.Step, solo: pr.Step, seen: Sequence[Any], seed: int = 5) -> tuple[pr.State, list[pr.State]]:
    """Go on with a population, and with each of its members alone."""
    state = sweep.init(seed)
    alone = list(pr.unstack(state))
    for batch in seen:
        state, alone = sweep(state, batch), [solo(each, batch) for each in alone]
    return state, alone


def same(state: pr.State, alone: Sequence[pr.State]) -> bool:
    """Say whether each bit of each member is that of its solo run."""
    return [pr.digest(each) for each in pr.unstack(state)] == [pr.digest(each) for each in alone]


def gap(state: pr.State, alone: Sequence[pr.State]) -> float:
    """Say how far any number of any member is off its solo run."""
    pairs = zip(pr.unstack(state), alone, strict=True)
    return max((each.largest for own, other in pairs for each in pr.diff(own, other)), default=0.0)
