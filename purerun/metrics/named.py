"""Metrics by name: the functions of a metric, for a dict of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from purerun.metrics.metric import Metric, Tally

Tallies: TypeAlias = dict[str, Tally]
"""Metric name -> its tally."""


def init(metrics: Mapping[str, Metric], device: torch.device | str = "cpu") -> Tallies:
    """Make the tallies of no batch.

    >>> from purerun.metrics import Accuracy
    >>> init({"accuracy": Accuracy()})
    {'accuracy': {'correct': tensor(0), 'total': tensor(0)}}
    """
    return {name: metric.init(device) for name, metric in metrics.items()}


def update(metrics: Mapping[str, Metric], tallies: Tallies, output: Any, batch: Any) -> Tallies:
    """Make the tallies after one batch more."""
    return {name: metric.update(tallies[name], output, batch) for name, metric in metrics.items()}


def merge(metrics: Mapping[str, Metric], a: Tallies, b: Tallies) -> Tallies:
    """Join two stretches of one process, `a` before `b`."""
    return {name: metric.merge(a[name], b[name]) for name, metric in metrics.items()}


def reduce(metrics: Mapping[str, Metric], tallies: Sequence[Tallies]) -> Tallies:
    """Join the tallies of several processes, in their order."""
    return {name: metric.reduce([each[name] for each in tallies]) for name, metric in metrics.items()}


def compute(metrics: Mapping[str, Metric], tallies: Tallies) -> dict[str, Tensor]:
    """Read the scores: name -> tensor; a metric with several scores gives `name/score`.

    >>> from purerun.metrics import Accuracy
    >>> metrics = {"accuracy": Accuracy()}
    >>> batch = {"x": torch.zeros(2, 3), "y": torch.tensor([1, 0])}
    >>> tallies = update(metrics, init(metrics), torch.eye(3)[[1, 2]], batch)
    >>> compute(metrics, tallies)
    {'accuracy': tensor(0.5000, dtype=torch.float64)}

    Raises:
        ValueError: two metrics give the same name.
    """
    return _flat({name: metric.compute(tallies[name]) for name, metric in metrics.items()})


def blank(metrics: Mapping[str, Metric]) -> dict[str, Tensor]:
    """Make the scores before any validation: NaN, with the names and shapes of `compute`.

    >>> from purerun.metrics import Accuracy, F1
    >>> blank({"accuracy": Accuracy(), "f1": F1(2, average="none")})
    {'accuracy': tensor(nan, dtype=torch.float64), 'f1': tensor([nan, nan], dtype=torch.float64)}
    """
    return _flat({name: metric.blank() for name, metric in metrics.items()})


def _flat(scores: Mapping[str, Tensor | dict[str, Tensor]]) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for metric, score in scores.items():
        for name, value in _entries(metric, score):
            if name in flat:
                raise ValueError(
                    f"expected each score to have its own name, but the metrics {origin[name]!r} and {metric!r} "
                    f"both give {name!r}; rename one of them"
                )
            flat[name], origin[name] = value, metric
    return flat


def _entries(metric: str, score: Tensor | dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(score, Tensor):
        yield metric, score
    else:
        for name, value in score.items():
            yield f"{metric}/{name}", value
