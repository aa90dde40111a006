"""Why an iteration went as it did: its samples, and the loss that each of them has alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun import batch as _batch
from purerun import grad
from purerun.bind import Binding
from purerun.data import Loader
from purerun.data.nest import cut
from purerun.history.replay import replay
from purerun.history.stretches import fitted, stretches
from purerun.history.timeline import timeline
from purerun.population import members, spread, unstack
from purerun.random import Key, keyed_everywhere
from purerun.recipe import Recipe
from purerun.recipe.run import threads
from purerun.state import State, lazy_clone


@attrs.frozen
class Sample:
    """One sample of an iteration.

    Attributes:
        position: in the order of the epoch; the first one is 0.
        index: in the dataset; None when its source does not tell.
        loss: of this sample alone, in evaluation mode; None when that cannot be computed.
    """

    position: int
    index: int | None
    loss: float | None


@attrs.frozen
class Iteration:
    """What is known of one iteration.

    Attributes:
        iter: which one; the first is 1.
        epoch: in this epoch; the first one is 0.
        report: what the step reported, of the whole batch in training.
        samples: those of the batch, the largest loss first.
        trouble: why the samples have no losses of their own; "" when they have.
    """

    iter: int
    epoch: int
    report: dict[str, float]
    samples: tuple[Sample, ...]
    trouble: str = ""


def why(run: str | Path, recipe: Recipe, iter: int) -> Iteration:
    """List the samples of an iteration with their losses, recomputed at the state before it.

    The batch is exactly the one that was trained on, augmentation included.  The loss of a
    sample alone is computed in evaluation mode: without dropout, with running statistics.  Of a population it is
    the mean over its members.

    Args:
        run: its directory.
        recipe: of its recipe file; what the run had set otherwise is set again.
        iter: the iteration; the first one is 1.

    Raises:
        HistoryError: the run has not come so far, or another recipe made it.
        RecipeError: another program made it.

    >>> import tempfile
    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=1, out_features=1, bias=False),
    ...     loss=lambda model, batch: (batch[0] + 0 * model(batch[0])).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.arange(8.0).view(8, 1)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=2,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.recipe.train(recipe, folder)
    ...     found = why(folder, recipe, 2)
    >>> found.report["loss"], [(sample.index, sample.loss) for sample in found.samples]
    (5.5, [(7, 7.0), (6, 6.0), (5, 5.0), (4, 4.0)])
    """
    value, before, after = _around(run, recipe, iter)
    epoch, start = _place(before, after)
    stream = before["stream"] if "stream" in before.names() else None
    with threads(value.threads), value.train.open(int(before["seed"])) as session:
        batch, _ = next(session.read(epoch, start, stream))
        indices = _indices(value, before, epoch, start)
        count = _batch.size(batch) if indices is None else len(indices)
        losses, trouble = _alone(value, before, batch, count)
    rows = zip(indices or [None] * count, losses or [None] * count, strict=True)
    samples = [Sample(start + place, index, loss) for place, (index, loss) in enumerate(rows)]
    told = spread(after["metrics"], members(after))
    report = {name: leaf.item() for name, leaf in told.items() if isinstance(leaf, Tensor) and not leaf.ndim}
    return Iteration(iter, epoch, report, tuple(sorted(samples, key=_by_loss)), trouble)


def _around(run: str | Path, recipe: Recipe, iter: int) -> tuple[Recipe, State, State]:
    """Compute the states before and after an iteration, and say which recipe made the step."""
    line = timeline(run)
    to = line.after(iter)
    point, state = line.before(iter - 1)
    ways = stretches(point, to, iter)
    before, after = deque((now.hold() for now in replay(recipe, ways, state)), maxlen=2)
    return fitted(recipe, ways[-1].recipe), before, after


def _place(before: State, after: State) -> tuple[int, int]:
    """Say where in the data the batch between two states begins: the epoch, and the position in its order."""
    epoch, cursor = int(before["epoch"]), int(before["cursor"])
    passed = int(after["epoch"]) - epoch - (int(after["cursor"]) == 0)
    # What was left of the epoch made no batch, so the one after it was read.
    return (epoch + 1, 0) if passed > 0 else (epoch, cursor)


def _indices(recipe: Recipe, state: State, epoch: int, start: int) -> list[int] | None:
    """List the indices in the dataset; None where only reading can tell them."""
    if not isinstance(recipe.train, Loader):
        return None
    cuts = recipe.train.epoch(int(state["seed"]), epoch, start)
    return cuts.reader()(start, cuts.stop(start) or start).tolist()


def _alone(recipe: Recipe, state: State, batch: Any, count: int) -> tuple[list[float] | None, str]:
    """Compute the loss of each sample by itself; or say why that is not possible."""
    if _batch.size(batch) != count:
        return None, f"the batch holds {_batch.size(batch)} entries for {count} samples"
    module = recipe.module()
    binding, step = Binding(module), recipe.train_step(module)
    runs = unstack(state) if members(state) else (state,)
    try:
        parts = [_batch.move(cut(batch, place, place + 1), step.device) for place in range(count)]
        return [fmean(_loss(recipe, binding, run, step.trained, part) for run in runs) for part in parts], ""
    # Whatever the code of a recipe raises when it is given one sample.
    except Exception as error:  # noqa: BLE001
        return None, f"the loss cannot take one sample alone ({type(error).__name__}: {_first_line(error)})"


def _loss(recipe: Recipe, binding: Binding, state: State, trained: Collection[str], batch: Any) -> float:
    params = {name: lazy_clone(state["params", name]).requires_grad_(name in trained) for name in binding.params}
    buffers = {name: lazy_clone(state["buffers", name]) for name in binding.buffers}
    key = Key.of(int(state["seed"]), "step", int(state["iter"]))
    with keyed_everywhere(key), torch.enable_grad(), binding(params, buffers, training=False) as model:
        totals = [grad.reduce(part.loss(model, batch), batch)[0] for part in recipe.parts.values()]
    return sum(total.item() for total in totals)


def _by_loss(sample: Sample) -> float:
    """Order samples: a loss that is no number first, then from the largest to the smallest."""
    loss = 0.0 if sample.loss is None else sample.loss
    return -math.inf if math.isnan(loss) else -loss


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
