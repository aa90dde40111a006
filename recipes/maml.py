"""Learning to learn sine curves: weights from which five gradient steps on ten points fit a new curve.

purerun train recipes/maml.py
purerun test recipes/maml.py

The loss contains the inner steps and is differentiated through them: model-agnostic meta-learning (Finn et al. 2017,
arXiv:1703.03400, section 5.1).  With `--set loss.steps=0` for both commands it is what that is compared with: weights
that were trained on all curves at once, and are then adapted by the same five steps.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

import purerun as pr


@attrs.frozen
class Sinusoids(pr.data.InMemory):
    """Curves `y = amplitude * sin(x + phase)`; a sample is a curve: `x` and `y` to learn it from, `query` and `answer`.

    Attributes:
        split: "train" or "test", which have no curve in common.
        curves: how many.
        points: how many to learn a curve from, and as many to answer.
    """

    split: Literal["train", "test"] = "train"
    curves: int = 20_000
    points: int = 10

    def tensors(self) -> pr.data.Tensors:
        """Draw all curves at once: each entry is float32 [curves, points, 1]."""
        chance = pr.Key.of(0, "sinusoids", self.split).generator()
        amplitude, phase = torch.rand(2, self.curves, 1, 1, generator=chance)
        x, query = 10 * torch.rand(2, self.curves, self.points, 1, generator=chance) - 5
        curve = partial(_curve, 0.1 + 4.9 * amplitude, math.pi * phase)
        return pr.data.Tensors(x=x, y=curve(x), query=query, answer=curve(query))


def _curve(amplitude: Tensor, phase: Tensor, x: Tensor) -> Tensor:
    return amplitude * (x + phase).sin()


class CurveNet(nn.Sequential):
    """Two hidden layers.  Smooth ones: the derivative through the inner steps is one of second order."""

    def __init__(self, width: int = 40) -> None:
        super().__init__(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


@attrs.frozen
class Adapt:
    """Answer each curve's queries, after some steps of an optimizer on the curve's own points.

    Shapes: T curves, P points, 1 number.
    """

    steps: int
    optimizer: pr.optim.Optimizer

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Compute the answers: float [T, P, 1]."""
        return torch.vmap(partial(self._answer, model))(batch["x"], batch["y"], batch["query"])

    def _answer(self, model: nn.Module, x_P1: Tensor, y_P1: Tensor, query_P1: Tensor) -> Tensor:
        def error(params: dict[str, Tensor]) -> Tensor:
            return mse_loss(functional_call(model, params, x_P1), y_P1)

        params: dict[str, Tensor] = {**dict(model.named_parameters())}
        slots, buckets = self.optimizer.init(params), [pr.optim.Bucket(tuple(params), self.optimizer.hyper())]
        for _ in range(self.steps):
            params, slots = self.optimizer.trace(params, torch.func.grad(error)(params), slots, buckets)
        return functional_call(model, params, query_P1)


@attrs.frozen
class LossAfter:
    """The squared error of the answers after some steps; after none, that of all points without learning to learn."""

    steps: int
    optimizer: pr.optim.Optimizer

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Compute the mean over all curves."""
        if self.steps:
            return mse_loss(Adapt(self.steps, self.optimizer)(model, batch), batch["answer"])
        x, y = torch.cat([batch["x"], batch["query"]]), torch.cat([batch["y"], batch["answer"]])
        return mse_loss(model(x), y)


inner = pr.optim.SGD(lr=0.02)

recipe = pr.Recipe(
    model=pr.Module(CurveNet, width=40),
    loss=LossAfter(5, inner),
    train=pr.Loader(Sinusoids("train"), batch_size=50, shuffle=True),
    val=pr.Loader(Sinusoids("test", curves=1000), batch_size=250),
    test=pr.Loader(Sinusoids("test", curves=1000), batch_size=250),
    optimizer=pr.optim.Adam(lr=5e-3),
    schedule=[pr.schedule.Cosine(period=3, end=3)],
    # Judged after the same five steps, whatever the training was.
    forward=Adapt(5, inner),
    metrics={"error": pr.metrics.MeanSquaredError(target="answer")},
    epochs=3,
    log="20 iters",
    seed=0,
    threads=1,
)
