"""The gradient of each sample of a batch by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from purerun import batch as _batch
from purerun.batch import BatchError
from purerun.bind import ModelError
from purerun.chance import Streams
from purerun.derivatives.objective import opened, train_step
from purerun.grad import WHOLE, Grads
from purerun.mapping import mapped
from purerun.random import keyed
from purerun.state import Draft, State
from purerun.step import HOST, Step
from purerun.valid import is_whole


def per_sample(step: Step, state: State, batch: Any, *, chunk: int | None = None) -> Grads:
    """Compute the gradients that each sample of a batch has alone, all in one program (`vmap` over `grad`).

    `grads` has a row for each sample, float [n, ...], and so have `weight` and `metrics`.  The mean of the rows by
    their weights is the batch's gradient.

    Each sample has a chance of its own, that of `Pass().at(i)` for the i-th: dropout masks are those that
    `pr.Microbatch(n)` would draw for n samples, whatever the chunk.

    Args:
        step: a training step with `engine="func"`, or one with wrappers around it that leave `grad` mappable.
        state: the state.
        batch: tensors whose first dimension counts samples; what has no dimension belongs to each sample.
        chunk: how many samples at a time, to save memory; None for all at once.

    Raises:
        ValueError: the step cannot be mapped.
        ModelError: the model has a BatchNorm that mixes the samples.
        BatchError: the batch cannot be cut into samples.
        StateError: the state is a population.
        SweepError: the model or the loss holds something that cannot be mapped, such as a decision by a value.

    >>> step = pr.TrainStep(
    ...     torch.nn.Linear(2, 1, bias=False), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1), engine="func"
    ... )
    >>> each = pr.per_sample(step, step.init(), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> each.grads["weight"].shape, each.grads["weight"].flatten(1).tolist()
    (torch.Size([2, 1, 2]), [[1.0, 2.0], [3.0, 4.0]])
    """
    if not step.mappable:
        raise ValueError(
            "expected a step that can be mapped over samples, got one with engine='autograd', or with a wrapper that "
            "cannot be (a sweep, Compile, DataParallel, a loss scale, ...); take TrainStep(..., engine='func'), "
            "and leave such wrappers out"
        )
    draft = opened(state)
    _refuse_mixing(step, draft)
    batch = _batch.move(_mappable(batch), step.device)
    found, first = [], 0
    for part in _batch.cut(batch, _chunks(batch, chunk)):
        found.append(_mapped(step, draft, part, first))
        first += _batch.size(part)
    return _joined(found)


def _mapped(step: Step, draft: Draft, batch: Any, first: int) -> Grads:
    """Compute the rows of some samples, of which the first has this place in the batch."""
    leaves, structure = pytree.tree_flatten(batch)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim]
    told: list[Grads] = []

    def one(*tensors: Tensor) -> tuple[Any, ...]:
        alone = leaves.copy()
        for place, tensor in zip(places, tensors, strict=True):
            alone[place] = tensor.unsqueeze(0)
        grads = step.read({**draft, HOST: {}}, pytree.tree_unflatten(alone, structure))
        told.append(grads)
        return grads.grads, torch.as_tensor(grads.weight, dtype=torch.float64), grads.metrics

    keys = [step.key(draft, WHOLE.at(first + place)) for place in range(_batch.size(batch))]
    with keyed(keys[0]), Streams(keys):
        grads, weight, metrics = mapped(one, *(leaves[place] for place in places))
    return Grads(grads, weight, metrics=metrics, merges=told[0].merges)


def _joined(parts: Sequence[Grads]) -> Grads:
    if len(parts) == 1:
        return parts[0]

    def joined(trees: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([tree[name] for tree in trees]) for name in trees[0]}

    weight = torch.cat([torch.as_tensor(part.weight) for part in parts])
    grads, metrics = joined([part.grads for part in parts]), joined([part.metrics for part in parts])
    return Grads(grads, weight, metrics=metrics, merges=parts[0].merges)


def _chunks(batch: Any, chunk: int | None) -> int:
    """Count the runs that a batch is cut into, so that none has more samples than a chunk."""
    if chunk is not None and (not is_whole(chunk) or chunk < 1):
        raise ValueError(f"expected chunk to be a number of samples, at least 1, or None for all, got {chunk!r}")
    count = _batch.size(batch)
    if not count:
        raise BatchError(f"expected a batch with a sample at least, got {_batch.describe(batch)}")
    return 1 if chunk is None else -(-count // chunk)


def _mappable(batch: Any) -> Any:
    strange = {type(leaf).__name__ for leaf in pytree.tree_leaves(batch) if not isinstance(leaf, Tensor | int | float)}
    if strange:
        raise BatchError(
            f"expected a batch of tensors, which can be mapped over samples, got {sorted(strange)} in "
            f"{_batch.describe(batch)}; leave out what is no tensor"
        )
    return batch


def _refuse_mixing(step: Step, draft: Draft) -> None:
    """Refuse a model in which the gradient of one sample is not defined."""
    inner = train_step(step)
    with inner.binding(draft["params"], dict(draft["buffers"]), training=True) as model:
        mixing = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
        ]
    if mixing:
        raise ModelError(
            f"expected a model that treats each sample by itself, but its BatchNorm {mixing} mixes the samples of a "
            "batch, so that no sample has a gradient of its own; use GroupNorm, or keep it in evaluation mode"
        )
