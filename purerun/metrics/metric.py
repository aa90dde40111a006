"""What a metric is: a frozen value that counts into a tally and reads a score off it.

A tally is a plain dict of tensors, so it can be kept, sent and compared.  The tallies of
a metric form a monoid: `init` is the neutral one, and `merge` is associative.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from torch import Tensor

Tally: TypeAlias = dict[str, Tensor]
"""What a metric has counted so far."""


@attrs.frozen
class Metric(ABC):
    """A pure metric: `tally = update(tally, output, batch)`, `score = compute(tally)`.

    No method changes what it is given, and none reads a value back from a device.
    `purerun.testing.metrics.check_metric` checks the laws on a metric of your own.

    Two merges, because they are two things: `merge` puts two stretches of one process one
    after the other, `reduce` puts processes side by side.  For whatever is a sum they are
    the same; for `Last` they are not.

    >>> @attrs.frozen
    ... class Largest(Metric):
    ...     def init(self, device="cpu"):
    ...         return {"largest": torch.tensor(float("-inf"), device=device)}
    ...     def update(self, tally, output, batch):
    ...         return {"largest": torch.maximum(tally["largest"], output.amax())}
    ...     def merge(self, a, b):
    ...         return {"largest": torch.maximum(a["largest"], b["largest"])}
    ...     def compute(self, tally):
    ...         return tally["largest"]
    >>> metric = Largest()
    >>> float(metric.compute(metric.update(metric.init(), torch.tensor([1.0, 3.0]), None)))
    3.0
    """

    @abstractmethod
    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""

    @abstractmethod
    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Make the tally after one batch more."""

    @abstractmethod
    def merge(self, a: Tally, b: Tally) -> Tally:
        """Join two stretches of one process: `a`, and `b` that came after it."""

    @abstractmethod
    def compute(self, tally: Tally) -> Tensor | dict[str, Tensor]:
        """Read the score off a tally: a tensor, or several by name."""

    def reduce(self, tallies: Sequence[Tally]) -> Tally:
        """Join the tallies of several processes, in their order."""
        return fold(self.merge, tallies)

    def blank(self) -> Tensor | dict[str, Tensor]:
        """Make the score of a metric that has not been asked yet: NaN, in the shapes of `compute`."""
        score = self.compute(self.init())
        return {name: unknown(value) for name, value in score.items()} if isinstance(score, dict) else unknown(score)


def unknown(score: Tensor) -> Tensor:
    """Make a NaN for each number of a score: float64.

    >>> unknown(torch.zeros(2))
    tensor([nan, nan], dtype=torch.float64)
    """
    return torch.full_like(score, float("nan"), dtype=torch.float64)


def fold(join: Callable[[Tally, Tally], Tally], tallies: Sequence[Tally]) -> Tally:
    """Join tallies from left to right.

    Raises:
        ValueError: there is none.
    """
    if not tallies:
        raise ValueError("expected the tally of at least one process, got none; a process without batches has init()")
    return functools.reduce(join, tallies)


def added(a: Tally, b: Tally) -> Tally:
    """Add two tallies entry by entry: the merge of everything that is a sum.

    >>> added({"count": torch.tensor(2)}, {"count": torch.tensor(3)})
    {'count': tensor(5)}
    """
    return {name: a[name] + b[name] for name in a}
