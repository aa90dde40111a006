"""Means of what the steps report, exact across checkpoints and without waiting for a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import chain
from operator import add
from typing import Any

import torch
from torch import Tensor

from purerun.checkpoint import JSON, encoded
from purerun.population import names
from purerun.state import State, leaves


class Means:
    """Sums of reported scalars over the iterations of an interval.

    Reports are only kept until somebody asks; then all are read at once.  Each sum is a left
    fold in float64, in the order of the iterations, so that it does not matter where it was
    interrupted, saved and gone on with.

    Attributes:
        pending: reports (name -> scalar tensor) that have not been read.
        current: names of which the newest value is wanted instead of the mean.
        members: of the population that reports; 0 for a single run.
    """

    def __init__(self) -> None:
        self.pending: list[Mapping[str, Any]] = []
        self.current: frozenset[str] = frozenset()
        self.members = 0
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
            for series, numbers in _series(name, column, self.members):
                self._add(series, numbers, newest=name in self.current)
        self.pending.clear()

    def _add(self, series: str, numbers: Sequence[float], *, newest: bool) -> None:
        if newest:
            self._sums[series] = (numbers[-1], 1)
            return
        total, count = self._sums.get(series, (0.0, 0))
        # Not sum(): from Python 3.12 on its result depends on where a sum is cut in two.
        self._sums[series] = (reduce(add, numbers, total), count + len(numbers))


def hyper_names(state: State) -> frozenset[str]:
    """List the hyper-parameters of a state by the names under which steps report them.

    >>> from purerun.state import seal
    >>> sorted(hyper_names(seal({"hyper": {"lr": torch.tensor(0.1), "critic": {"lr": torch.tensor(0.1)}}})))
    ['critic.lr', 'lr']
    """
    if "hyper" not in state.names():
        return frozenset()
    return frozenset(".".join(path) for path, _ in leaves(state["hyper"], report=True))


def _series(name: str, column: list[Tensor], members: int) -> Iterable[tuple[str, Sequence[float]]]:
    """Read what was reported under a name; of a population, a series for each member."""
    if _scalar(column[0]):
        return [(name, _numbers(column))]
    if members and isinstance(column[0], Tensor) and column[0].shape == (members,):
        return zip(names(name, members), zip(*torch.stack(column).tolist(), strict=True), strict=True)
    return []


def _numbers(column: list[Tensor]) -> list[float]:
    # On an accelerator the values come over together; on the CPU one by one is quicker.
    return [leaf.item() for leaf in column] if column[0].is_cpu else torch.stack(column).tolist()


def _scalar(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not leaf.ndim
