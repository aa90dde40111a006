"""How far predictions are from their targets: squared and absolute errors."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from purerun import batch as _batch
from purerun.metrics.metric import Metric, Tally, added


@attrs.frozen
class MeanSquaredError(Metric):
    """The mean of the squared differences over all elements.

    Differences are taken and summed in float64: any split agrees to about 1e-15, relatively.

    Attributes:
        target: which entry of the batch holds the targets.
        output: which entry of the output holds the predictions; the same shape.

    >>> metric = MeanSquaredError()
    >>> metric.compute(metric.update(metric.init(), torch.tensor([1.0, 2.0]), (None, torch.tensor([1.0, 4.0]))))
    tensor(2., dtype=torch.float64)
    """

    target: str | int = 1
    output: str | int = attrs.field(default=0, kw_only=True)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        return _nothing(device)

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Add the squared errors of a batch.

        Raises:
            TypeError: the prediction or the target is no tensor.
            ValueError: their shapes differ.
        """
        error = _error(self, output, batch)
        return {"sum": tally["sum"] + error.square().sum(), "count": tally["count"] + error.numel()}

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Add up."""
        return added(a, b)

    def compute(self, tally: Tally) -> Tensor:
        """Divide: NaN for no element."""
        return tally["sum"] / tally["count"]


@attrs.frozen
class MeanAbsoluteError(Metric):
    """The mean of the absolute differences over all elements.

    Differences are taken and summed in float64: any split agrees to about 1e-15, relatively.

    Attributes:
        target: which entry of the batch holds the targets.
        output: which entry of the output holds the predictions; the same shape.

    >>> metric = MeanAbsoluteError()
    >>> metric.compute(metric.update(metric.init(), torch.tensor([1.0, 2.0]), (None, torch.tensor([1.0, 4.0]))))
    tensor(1., dtype=torch.float64)
    """

    target: str | int = 1
    output: str | int = attrs.field(default=0, kw_only=True)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        return _nothing(device)

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Add the absolute errors of a batch.

        Raises:
            TypeError: the prediction or the target is no tensor.
            ValueError: their shapes differ.
        """
        error = _error(self, output, batch)
        return {"sum": tally["sum"] + error.abs().sum(), "count": tally["count"] + error.numel()}

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Add up."""
        return added(a, b)

    def compute(self, tally: Tally) -> Tensor:
        """Divide: NaN for no element."""
        return tally["sum"] / tally["count"]


def _nothing(device: torch.device | str) -> Tally:
    return {
        "sum": torch.zeros((), dtype=torch.float64, device=device),
        "count": torch.zeros((), dtype=torch.int64, device=device),
    }


def _error(metric: MeanSquaredError | MeanAbsoluteError, output: Any, batch: Any) -> Tensor:
    found, target = _batch.entry(output, metric.output), _batch.entry(batch, metric.target)
    got = (
        f"{type(metric).__name__} expected predictions and targets of one shape, "
        f"got {_batch.describe(found)} and {_batch.describe(target)}"
    )
    if not isinstance(found, Tensor) or not isinstance(target, Tensor):
        raise TypeError(f"{got}; name the entries with `output` and `target`")
    if found.shape != target.shape:
        raise ValueError(f"{got}; reshape one of them, e.g. with .squeeze(1)")
    return found.double() - target.double()
