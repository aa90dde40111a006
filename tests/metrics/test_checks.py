"""The checks find metrics that break a law, and name it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from purerun.metrics import Accuracy, Metric
from purerun.metrics.metric import Tally, added
from purerun.testing.broken import LawBroken
from purerun.testing.metrics import check_metric

BATCHES = [(torch.arange(float(size)) + 1, torch.zeros(size)) for size in (3, 5, 2, 4)]


@attrs.frozen
class Sound(Metric):
    """The mean of the output; its children each break one thing."""

    def init(self, device: Any = "cpu") -> Tally:
        return {"sum": torch.zeros((), dtype=torch.float64), "count": torch.zeros((), dtype=torch.int64)}

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        return {"sum": tally["sum"] + output.double().sum(), "count": tally["count"] + len(output)}

    def merge(self, a: Tally, b: Tally) -> Tally:
        return added(a, b)

    def compute(self, tally: Tally) -> Tensor | dict[str, Tensor]:
        return tally["sum"] / tally["count"]


class InPlace(Sound):
    def update(self, tally, output, batch):
        tally["sum"] += output.sum()
        tally["count"] += len(output)
        return dict(tally)


class WritesTheOutput(Sound):
    def update(self, tally, output, batch):
        return super().update(tally, output.mul_(2), batch)


class MergesInPlace(Sound):
    def merge(self, a, b):
        a["sum"] += b["sum"]
        return {"sum": a["sum"], "count": a["count"] + b["count"]}


class Forgets(Sound):
    seen: list[float] = []  # noqa: RUF012 - this is the fault

    def update(self, tally, output, batch):
        self.seen.append(float(output.mean()))
        return super().update(tally, output, batch)

    def compute(self, tally):
        return torch.tensor(sum(self.seen) / len(self.seen))


class NoNeutral(Sound):
    def init(self, device="cpu"):
        return {"sum": torch.ones((), dtype=torch.float64), "count": torch.zeros((), dtype=torch.int64)}


class Halving(Sound):
    def merge(self, a, b):
        if not (a["count"] and b["count"]):
            return b if b["count"] else a
        return {"sum": (a["sum"] / a["count"] + b["sum"] / b["count"]) / 2, "count": a["count"] * 0 + 1}


class KeepsTheFirst(Sound):
    def merge(self, a, b):
        return a if a["count"] else b


class ForgetsARank(Sound):
    def reduce(self, tallies):
        first, *others = [tally for tally in tallies if tally["count"]] or tallies
        return added(first, others[0]) if others else first


class MeanOfMeans(Sound):
    def update(self, tally, output, batch):
        return {"sum": tally["sum"] + output.double().mean(), "count": tally["count"] + 1}


class LargestOfNewest(Sound):
    def update(self, tally, output, batch):
        return {"sum": output.double().amax(), "count": tally["count"] * 0 + 1}

    def merge(self, a, b):
        return b if b["count"] else a


class Widens(Sound):
    def update(self, tally, output, batch):
        return {name: value.double() for name, value in super().update(tally, output, batch).items()}


class Grows(Sound):
    def update(self, tally, output, batch):
        return {**super().update(tally, output, batch), "last": output.sum()}

    def merge(self, a, b):
        return {**added({k: a[k] for k in ("sum", "count")}, b), "last": torch.zeros(())}


class HoldsNumbers(Sound):
    def update(self, tally, output, batch):
        return {**super().update(tally, output, batch), "size": len(output)}


FAULTS = [
    (InPlace(), "purity is broken, in `sum`: a method changed a tally"),
    (WritesTheOutput(), "purity is broken, in `0`: update changed batch 0"),
    (MergesInPlace(), "purity is broken, in `sum`: a method changed a tally"),
    (HoldsNumbers(), "purity is broken, in `size`: expected a tally of tensors, got int"),
    (Forgets(), "memory is broken, in `score`: the same compute gave something else later"),
    (NoNeutral(), "identity is broken, in `score`"),
    (Halving(), "associativity is broken, in `score`"),
    (KeepsTheFirst(), "split is broken, in `score`: merging the stretches cut at"),
    (ForgetsARank(), "reduce is broken, in `score`"),
    (LargestOfNewest(), "order is broken, in `score`: the batches from last to first"),
    (MeanOfMeans(), r"grouping is broken, in `score`: two batches joined into one score differently \(a mean of means"),
    (Widens(), r"constancy is broken, in `count`: init made it torch.int64 \[\], update made it torch.float64 \[\]"),
    (Grows(), "constancy is broken, in `last`: init made it absent"),
]


def _fresh():
    return [(output.clone(), batch.clone()) for output, batch in BATCHES]


def test_a_sound_metric_passes():
    """A metric that keeps the laws is not accused."""
    check_metric(Sound(), _fresh(), tolerance=1e-15)


@pytest.mark.parametrize(("metric", "message"), FAULTS, ids=lambda value: type(value).__name__)
def test_each_fault_is_named(metric: Metric, message: str):
    """Each kind of fault is found by its law, which is named with the entry."""
    with pytest.raises(LawBroken, match=message):
        check_metric(metric, _fresh(), tolerance=1e-15)


def test_too_few_batches_are_refused():
    """Three batches are needed to speak of associativity."""
    with pytest.raises(ValueError, match="at least 3 batches"):
        check_metric(Accuracy(), _fresh()[:2])
