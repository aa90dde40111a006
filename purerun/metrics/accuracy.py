"""The share of samples whose class is among the highest scores."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from purerun import batch as _batch
from purerun.metrics.decision import Answers, answers
from purerun.metrics.metric import Metric, Tally, added


@attrs.frozen
class Accuracy(Metric):
    """Count how often the right class is among the `topk` highest scores.

    Counts are int64: any split of the data gives the same bits.

    Attributes:
        topk: how many of the highest scores count as an answer.
        target: which entry of the batch holds the class numbers, int [samples, ...].
        output: which entry of the output holds the scores, [samples, classes, ...], or for
            `topk=1` class numbers, int [samples, ...].
        ignore: a target that does not count.

    >>> metric = Accuracy(target="label")
    >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> tally = metric.update(metric.init(), scores, {"image": None, "label": torch.tensor([0, 1, 1])})
    >>> tally
    {'correct': tensor(2), 'total': tensor(3)}
    >>> round(float(metric.compute(tally)), 4)
    0.6667
    """

    topk: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    target: str | int = 1
    output: str | int = attrs.field(default=0, kw_only=True)
    ignore: int | None = attrs.field(default=None, kw_only=True)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        return {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("correct", "total")}

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Count a batch.

        Raises:
            TypeError: the output or the target is of another kind.
            ValueError: their shapes do not fit, or there are fewer classes than `topk`.
        """
        scores, target = _batch.entry(output, self.output), _batch.entry(batch, self.target)
        found = answers("Accuracy", scores, target, ignore=self.ignore)
        hit = self._hit(found)
        if found.counted is None:
            return {"correct": tally["correct"] + hit.sum(), "total": tally["total"] + hit.numel()}
        return {
            "correct": tally["correct"] + (hit & found.counted).sum(),
            "total": tally["total"] + found.counted.sum(),
        }

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Add up."""
        return added(a, b)

    def compute(self, tally: Tally) -> Tensor:
        """Divide: a share between 0 and 1, NaN for no sample."""
        return tally["correct"].double() / tally["total"]

    def _hit(self, found: Answers) -> Tensor:
        if self.topk == 1:
            return found.decided == found.target
        if found.scores is None or found.scores.shape[1] < self.topk:
            have = "class numbers" if found.scores is None else f"{found.scores.shape[1]} classes"
            raise ValueError(f"Accuracy(topk={self.topk}) expected scores of at least {self.topk} classes, got {have}")
        best = found.scores.topk(self.topk, dim=1).indices
        return (best == found.target.unsqueeze(1)).any(dim=1)
