"""Means over samples of whatever a function measures: `Mean`, `Loss`, and `Last` of the newest batch.

All three count a float64 sum and its weight.  They differ in what they take for a batch
and in how two stretches join: sums add up, the newest replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from torch import Tensor

from purerun import batch as _batch
from purerun import program
from purerun.grad import Loss as WeightedLoss
from purerun.metrics.metric import Metric, Tally, added, fold

Measure: TypeAlias = Callable[[Any, Any], Any]
"""A function of output and batch that returns a tensor, a number or a `pr.Loss`."""


@attrs.frozen
class Mean(Metric):
    """The mean of a quantity over all samples.

    A quantity of one element is taken as the mean of its batch and weighted by the batch
    size; one of more elements counts each element once; a `pr.Loss` brings its own sum
    and weight.  Sums are kept in float64: other cuts of the data agree to about 1e-15 of
    the sum of the absolute values.

    Attributes:
        of: a function of output and batch, or the name or place of an entry of the output.
        weight: a function of output and batch that weighs the quantity: a scalar, or one
            number for each element.

    >>> metric = Mean(lambda output, batch: output.norm(dim=1))
    >>> tally = metric.update(metric.init(), torch.tensor([[3.0, 4.0], [0.0, 1.0]]), None)
    >>> metric.compute(tally)
    tensor(3., dtype=torch.float64)
    """

    of: Measure | str | int = attrs.field(default=0, repr=program.describe)
    weight: Measure | None = attrs.field(default=None, kw_only=True, repr=program.describe)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        return _nothing(device)

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Add a batch's sum and weight."""
        return added(tally, _measured(_quantity(self.of, output, batch), self.weight, output, batch, tally))

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Add up."""
        return added(a, b)

    def compute(self, tally: Tally) -> Tensor:
        """Divide sum by weight: NaN for no sample."""
        return tally["sum"] / tally["weight"]


@attrs.frozen
class Loss(Metric):
    """The mean of a loss over all samples.

    Attributes:
        loss: a function of output and batch that returns the mean over its batch, as losses
            do, or a `pr.Loss` with a weight of its own (tokens, boxes).

    >>> metric = Loss(lambda output, batch: torch.nn.functional.mse_loss(output, batch[1]))
    >>> tally = metric.update(metric.init(), torch.ones(4), (None, torch.zeros(4)))
    >>> tally = metric.update(tally, torch.ones(1), (None, torch.ones(1)))
    >>> metric.compute(tally)
    tensor(0.8000, dtype=torch.float64)
    """

    loss: Measure = attrs.field(repr=program.describe)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        return _nothing(device)

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Add the loss of a batch, weighted by its size.

        Raises:
            ValueError: the loss is not one number.
        """
        value = self.loss(output, batch)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(
                f"expected {program.describe(self.loss)} to return one number, got a tensor of shape "
                f"{list(value.shape)}; reduce it, e.g. with .mean(), or use Mean for one number a sample"
            )
        return added(tally, _measured(value, None, output, batch, tally))

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Add up."""
        return added(a, b)

    def compute(self, tally: Tally) -> Tensor:
        """Divide sum by weight: NaN for no sample."""
        return tally["sum"] / tally["weight"]


@attrs.frozen
class Last(Metric):
    """The newest value of a quantity: the mean over the last batch of each process.

    Over time the later stretch wins; over processes, which hold the parts of one batch, the
    parts are averaged by their weights.  A batch without samples changes nothing.

    Attributes:
        of: as in `Mean`.
        weight: as in `Mean`.

    >>> metric = Last()
    >>> first = metric.update(metric.init(), torch.tensor([1.0]), None)
    >>> second = metric.update(metric.init(), torch.tensor([2.0, 4.0]), None)
    >>> float(metric.compute(metric.merge(first, second)))
    3.0
    >>> float(metric.compute(metric.reduce([first, second])))
    2.3333333333333335
    """

    of: Measure | str | int = attrs.field(default=0, repr=program.describe)
    weight: Measure | None = attrs.field(default=None, kw_only=True, repr=program.describe)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        return _nothing(device)

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Replace what there was by this batch."""
        return self.merge(tally, _measured(_quantity(self.of, output, batch), self.weight, output, batch, tally))

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Take the later one, if it has seen anything."""
        return {name: torch.where(b["weight"] != 0, b[name], a[name]) for name in a}

    def reduce(self, tallies: Sequence[Tally]) -> Tally:
        """Average over the processes."""
        return fold(added, tallies)

    def compute(self, tally: Tally) -> Tensor:
        """Divide sum by weight: NaN for no sample."""
        return tally["sum"] / tally["weight"]


def _nothing(device: torch.device | str) -> Tally:
    return {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("sum", "weight")}


def _quantity(of: Measure | str | int, output: Any, batch: Any) -> Any:
    return of(output, batch) if callable(of) else _batch.entry(output, of)


def _measured(value: Any, weight: Measure | None, output: Any, batch: Any, like: Tally) -> Tally:
    """Make the tally of one batch's quantity."""
    device = like["sum"].device
    if isinstance(value, WeightedLoss):
        return {"sum": _wide(value.sum, device).reshape(()), "weight": _wide(value.weight, device).reshape(())}
    if not isinstance(value, Tensor | int | float):
        raise TypeError(
            f"expected a tensor or a number to average, got {type(value).__name__} from the output "
            f"{_batch.describe(output)}; name one of its entries, or give a function of output and batch"
        )
    quantity = _wide(value, device)
    scale = _scale(quantity, None if weight is None else _wide(weight(output, batch), device), batch)
    # A mean over nothing is NaN, and would stay so beside a weight of 0.
    return {"sum": torch.where(scale != 0, quantity * scale, 0.0).sum(), "weight": scale.sum()}


def _wide(value: Tensor | float, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(device, torch.float64)
    # A fill, where torch.tensor would wait for the device.
    return torch.full((), value, dtype=torch.float64, device=device)


def _scale(quantity: Tensor, weight: Tensor | None, batch: Any) -> Tensor:
    """Say how much each element counts: float64, the quantity's shape."""
    if weight is None:
        return torch.full_like(quantity, _batch.size(batch) if quantity.numel() == 1 else 1.0)
    if weight.numel() == 1:
        return weight.reshape(()).expand(quantity.shape) / max(quantity.numel(), 1)
    if weight.shape == quantity.shape:
        return weight
    raise ValueError(
        f"expected one weight, or one for each element of {list(quantity.shape)}, got {list(weight.shape)}; "
        "let the weight have the quantity's shape"
    )
