"""A small training to differentiate: a regression in float64, its batches, and a set to validate on."""

from __future__ import annotations

import torch
from torch import nn

import purerun as pr
from purerun.random import Key, keyed


def loss(model, batch):
    """Compute the mean squared error, each sample by its weight where the batch has them."""
    errors = (model(batch["x"]) - batch["y"]).square().sum(1)
    return (batch["weight"] * errors).mean() if "weight" in batch else errors.mean()


def points(count, name):
    """Draw points of a curve with two outputs."""
    x = torch.randn(count, 3, dtype=torch.float64, generator=Key.of(0, name).generator())
    return {"x": x, "y": torch.stack([x.sin().sum(-1), x.cos().prod(-1)], -1)}


def batches(count, size=8):
    """Make the batches of some steps."""
    return [points(size, str(turn)) for turn in range(count)]


def network(*middle):
    """Make a network with weights that are the same each time."""
    with keyed(Key.of(0, "weights")):
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), *middle, nn.Linear(5, 2)).double()


def make(optimizer=pr.optim.SGD(lr=0.1, momentum=0.9), *, model=None, loss=loss, engine="func", **options):  # noqa: B008
    """Make a step whose derivative can be taken."""
    return pr.TrainStep(model or network(), loss, optimizer, engine=engine, **options)


def difference(function, tensor, *, width=1e-6):
    """Compute the derivative of a function by each number of a tensor, by central differences."""
    slopes = []
    for place in range(tensor.numel()):
        ends = []
        for sign in (1, -1):
            moved = tensor.clone()
            moved.view(-1)[place] += sign * width
            ends.append(float(function(moved)))
        slopes.append((ends[0] - ends[1]) / (2 * width))
    return torch.tensor(slopes, dtype=torch.float64).reshape(tensor.shape)
