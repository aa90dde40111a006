"""Means of what the steps report, exact across checkpoints and without waiting for a device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from itertools import chain
from operator import add
from typing import Any

import torch
from torch import Tensor

from purerun.checkpoint import JSON, encoded
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
        for name in dict.fromkeys(chain.from_iterable(self.pending)):
            column = [report[name] for report in self.pending if name in report]
            if not _scalar(column[0]):
                continue
            if name in self.current:
                self._sums[name] = (column[-1].item(), 1)
                continue
            total, count = self._sums.get(name, (0.0, 0))
            # Not sum(): from Python 3.12 on its result depends on where a sum is cut in two.
            self._sums[name] = (reduce(add, _numbers(column), total), count + len(column))
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


def _numbers(column: list[Tensor]) -> list[float]:
    # On an accelerator the values come over together; on the CPU one by one is quicker.
    return [leaf.item() for leaf in column] if column[0].is_cpu else torch.stack(column).tolist()


def _scalar(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.ndim
