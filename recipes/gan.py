"""A generative adversarial network on eight clusters of points in a ring: two models, two optimizers, one state.

purerun train recipes/gan.py
purerun test recipes/gan.py

The classic small test of GANs, which love to forget clusters (Metz et al. 2017, arXiv:1611.02163).  The losses are
the non-saturating ones, with the gradient penalty R1 (Mescheder et al. 2018, arXiv:1801.04406); what is judged is an
average of the generator.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import purerun as pr

CLUSTERS, SPREAD, NOISE = 8, 0.05, 8


def centres() -> Tensor:
    """Give the middles of the clusters: float32 [8, 2], on the unit circle."""
    angle = torch.arange(CLUSTERS) * (2 * math.pi / CLUSTERS)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


@attrs.frozen
class Ring(pr.data.InMemory):
    """Points around the clusters, as many of each; a sample is `{"point": float32 [2]}`.

    Attributes:
        split: "train" or "test".
        points: how many.
    """

    split: Literal["train", "test"] = "train"
    points: int = 25_600

    def tensors(self) -> pr.data.Tensors:
        """Draw all points at once."""
        chance = pr.Key.of(0, "ring", self.split).generator()
        cluster = torch.arange(self.points) % CLUSTERS
        return pr.data.Tensors(point=centres()[cluster] + SPREAD * torch.randn(self.points, 2, generator=chance))


class Gan(nn.ModuleDict):
    """A generator of points from noise, and a critic of points."""

    def __init__(self, width: int = 64) -> None:
        super().__init__({"generator": _net(NOISE, width, 2), "critic": _net(2, width, 1)})


def _net(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def generate(models: Any, batch: Any) -> Tensor:
    """Make as many points as a batch has: float [B, 2].  The noise is a function of the seed and the iteration."""
    return models["generator"](torch.randn(len(batch["point"]), NOISE, device=batch["point"].device))


@attrs.frozen
class CriticLoss:
    """How badly points are told from made ones, and `penalty / 2` times the squared slope at the true ones."""

    penalty: float = 0.1

    def __call__(self, models: Any, batch: Any) -> Tensor:
        """Compute the mean over a batch."""
        point = batch["point"].detach().requires_grad_()
        true, made = models["critic"](point), models["critic"](generate(models, batch).detach())
        (slope,) = torch.autograd.grad(true.sum(), point, create_graph=True)
        return softplus(-true).mean() + softplus(made).mean() + self.penalty / 2 * slope.square().sum(1).mean()


def generator_loss(models: Any, batch: Any) -> Tensor:
    """How badly made points are taken for true ones."""
    return softplus(-models["critic"](generate(models, batch))).mean()


@attrs.frozen
class Modes(pr.metrics.Metric):
    """Where made points lie.

    `covered` is how many clusters have at least a quarter of their share of the points, `near` is the share of points
    within three spreads of a cluster's middle.
    """

    def init(self, device: torch.device | str = "cpu") -> pr.metrics.Tally:
        """Count nothing."""
        return {
            "near": torch.zeros(CLUSTERS, dtype=torch.int64, device=device),
            "total": torch.tensor(0, device=device),
        }

    def update(self, tally: pr.metrics.Tally, output: Tensor, batch: Any) -> pr.metrics.Tally:
        """Count the points near to each cluster."""
        near = torch.cdist(output.float(), centres().to(output.device)) < 3 * SPREAD
        return {"near": tally["near"] + near.sum(0), "total": tally["total"] + len(output)}

    def merge(self, a: pr.metrics.Tally, b: pr.metrics.Tally) -> pr.metrics.Tally:
        """Add up."""
        return {name: a[name] + b[name] for name in a}

    def compute(self, tally: pr.metrics.Tally) -> dict[str, Tensor]:
        """Divide."""
        share = tally["near"].double() / tally["total"]
        return {"covered": (share >= 0.25 / CLUSTERS).sum(), "near": share.sum()}


recipe = pr.Recipe(
    model=pr.Module(Gan, width=64),
    steps={
        # Twice as fast as the generator, which learns from it (Heusel et al. 2017, arXiv:1706.08500).
        "critic": pr.Part(
            loss=CriticLoss(penalty=0.1), optimizer=pr.optim.Adam(lr=4e-3, betas=(0.5, 0.99)), params="critic.*"
        ),
        "generator": pr.Part(
            loss=generator_loss,
            optimizer=pr.optim.Adam(lr=2e-3, betas=(0.5, 0.99)),
            params="generator.*",
            wrappers=[pr.EMA(0.99)],
        ),
    },
    train=pr.Loader(Ring("train"), batch_size=256, shuffle=True),
    val=pr.Loader(Ring("test", points=2048), batch_size=2048),
    test=pr.Loader(Ring("test", points=2048), batch_size=2048),
    forward=generate,
    weights="ema/generator",
    metrics={"modes": Modes()},
    epochs=12,
    log="200 iters",  # an epoch has 100 batches, and each of them is two iterations
    keep=3,
    publish="ema/generator",
    seed=0,
    threads=1,
)
