"""A metric for each member: the scores are those of judging one by one."""

from __future__ import annotations

import pytest
import torch

from purerun.metrics import F1, Accuracy, Each, MeanSquaredError
from purerun.metrics.metric import Metric

LABELS = torch.tensor([0, 2, 1, 1])
BATCH = {"x": torch.zeros(4), "label": LABELS}


@pytest.mark.parametrize("metric", [Accuracy(), F1(3, average="none")], ids=["a number", "a row"])
def test_scores_are_those_of_judging_one_by_one(metric: Metric):
    """Over two batches."""
    outputs = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    each, tally, own = Each(5, metric), Each(5, metric).init(), [metric.init() for _ in range(5)]
    for output in outputs:
        tally = each.update(tally, output, BATCH)
        own = [metric.update(mine, part, BATCH) for mine, part in zip(own, output, strict=True)]

    assert torch.equal(torch.stack([metric.compute(mine) for mine in own]), each.compute(tally))  # type: ignore[arg-type]


def test_outputs_may_be_nests():
    """Each member has its part of each tensor."""

    class First(MeanSquaredError):
        def update(self, tally, output, batch):
            return super().update(tally, output["pair"][0], batch)

    batch = {"x": torch.zeros(2), "y": torch.zeros(2)}
    metric = Each(2, First())
    tally = metric.update(metric.init(), {"pair": (torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.zeros(2))}, batch)

    assert [1.0, 4.0] == metric.compute(tally).tolist()  # type: ignore[union-attr]


def test_outputs_of_another_number_are_refused():
    """As those of a single model are."""
    metric = Each(3, Accuracy())
    with pytest.raises(ValueError, match=r"each of 3 members, got a tensor of shape \[4, 3\]"):
        metric.update(metric.init(), torch.zeros(4, 3), BATCH)
