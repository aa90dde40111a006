"""The loss of a state on a batch, as a number that can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from purerun import batch as _batch
from purerun.grad import reduce
from purerun.population import SEEDS
from purerun.state import Draft, State, StateError, unseal
from purerun.step import Step
from purerun.train import TrainStep
from purerun.wrappers.wrapper import Wrapped


def loss_at(step: Step, state: State, batch: Any, *, training: bool = False) -> Tensor:
    """Compute the mean loss of a batch at a state, by the step's own loss function.

    Unlike the reported `metrics`, it has a derivative: inside of `torch.func.grad`, by whatever the state was
    made from.  Nothing is updated.  See `unroll`.

    Args:
        step: a training step, or one with wrappers around it; the model is run as they say (autocast, dropout), on the
            whole batch.
        state: the state.
        batch: what the loss is of.
        training: run the model in training mode, under the key of the state's iteration; else in evaluation mode, in
            which what a BatchNorm has gathered counts as a constant: torch has no derivative of it.

    Raises:
        TypeError: there is no training step inside.
        StateError: the state is a population.

    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1))
    >>> state, x = step.init(seed=0), torch.ones(4, 2)
    >>> float(pr.loss_at(step, state, x)) == float(step(state, x)["metrics", "loss"])
    True
    """
    inner, draft = train_step(step), opened(state)
    batch = _batch.move(batch, inner.device)

    def total(trained: Mapping[str, Tensor]) -> Tensor:
        # Cloned inside: a transform does not allow writes into what it captured.
        buffers = {name: buffer.clone() for name, buffer in draft["buffers"].items()}
        with inner.binding({**draft["params"], **trained}, buffers, training=training) as model, step.forward(draft):
            return reduce(inner.loss(model, batch), batch)[0]

    with step.chance(draft):
        # Under a transform of its own: what a loss of several terms minimises are those that have a derivative here.
        return torch.func.vjp(total, {name: draft["params"][name] for name in inner.trained})[0]


def opened(state: State) -> Draft:
    """Open the state of a single run as a draft.

    Raises:
        StateError: it is a population.
    """
    draft = unseal(state)
    if SEEDS in draft:
        raise StateError(
            f"expected the state of a single run, got a population of {len(draft[SEEDS])}; take a member out of it, "
            "pr.unstack(state)[0]"
        )
    return draft


def train_step(step: Step) -> TrainStep:
    """Find the training step inside of its wrappers.

    Raises:
        TypeError: there is none.
    """
    inner = step
    while isinstance(inner, Wrapped):
        inner = inner.step
    if not isinstance(inner, TrainStep):
        raise TypeError(f"expected a pr.TrainStep, perhaps in wrappers, got {type(inner).__name__}")
    return inner
