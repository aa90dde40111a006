"""Means of what the steps report, exact across checkpoints and without waiting for a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from purerun.checkpoint import JSON
from purerun.sinks.lines import encoded
from purerun.state import State, leaves


class Means:
    """Sums of reported scalars over the iterations of an interval.

    Reports are only kept until somebody asks; then all are read at once.  Each sum is a left
    fold in float64, in the order of the iterations, so that it does not matter where it was
    interrupted, saved and gone on with.

    Attributes:
        pending: reports (name -> scalar tensor) that have not been read.
        current: names of which the newest value is wanted instead of the mean.
    """

    def __init__(self) -> None:
        self.pending: list[Mapping[str, Any]] = []
        self.current: frozenset[str] = frozenset()
        self._sums: dict[str, tuple[float, int]] = {}

    def take(self) -> dict[str, float]:
        """Give the means, and begin anew."""
        self._fold()
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def memory(self) -> JSON:
        """Say the sums so far: name -> [sum, count]."""
        self._fold()
        return {name: [encoded(total), count] for name, (total, count) in self._sums.items()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on with sums."""
        self._sums = {name: (float(total), int(count)) for name, (total, count) in memory.items()}

    def _fold(self) -> None:
        for name, value in _read(self.pending):
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (value, 1) if name in self.current else (total + value, count + 1)
        self.pending.clear()


def hyper_names(state: State) -> frozenset[str]:
    """List the hyper-parameters of a state by the names under which steps report them.

    >>> from purerun.state import seal
    >>> sorted(hyper_names(seal({"hyper": {"lr": torch.tensor(0.1), "critic": {"lr": torch.tensor(0.1)}}})))
    ['critic.lr', 'lr']
    """
    if "hyper" not in state.names():
        return frozenset()
    return frozenset(".".join(path) for path, _ in leaves(state["hyper"], report=True))


def _read(reports: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """Read the scalars of reports, in their order; each device is waited for once."""
    flat = [(name, leaf) for report in reports for name, leaf in report.items() if _scalar(leaf)]
    away = [place for place, (_, leaf) in enumerate(flat) if leaf.device.type != "cpu"]
    values: dict[int, float] = {}
    for kind in {(flat[place][1].device, flat[place][1].dtype) for place in away}:
        places = [place for place in away if (flat[place][1].device, flat[place][1].dtype) == kind]
        together = torch.stack([flat[place][1] for place in places]).cpu().to(torch.float64)
        values.update(zip(places, together.tolist(), strict=True))
    for place, (name, leaf) in enumerate(flat):
        yield name, values[place] if place in values else float(leaf.item())


def _scalar(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.ndim
