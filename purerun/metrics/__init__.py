"""Metrics as values: `init`, `update`, `merge` over time, `reduce` over processes, `compute`."""

from purerun.metrics.accuracy import Accuracy
from purerun.metrics.confusion import F1, ConfusionMatrix
from purerun.metrics.each import Each
from purerun.metrics.foreign import Torchmetrics
from purerun.metrics.mean import Last, Loss, Mean
from purerun.metrics.metric import Metric, Tally
from purerun.metrics.named import Tallies, blank, compute, init, merge, reduce, update
from purerun.metrics.regression import MeanAbsoluteError, MeanSquaredError

__all__ = [
    "F1",
    "Accuracy",
    "ConfusionMatrix",
    "Each",
    "Last",
    "Loss",
    "Mean",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Tallies",
    "Tally",
    "Torchmetrics",
    "blank",
    "compute",
    "init",
    "merge",
    "reduce",
    "update",
]
