"""The metrics that the laws are tested on.  Adding a metric is adding a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
import torchmetrics as tm
from torch import Tensor
from torchmetrics import classification as tmc
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.retrieval import RetrievalMAP
from torchmetrics.text import Perplexity, WordErrorRate

import purerun as pr
from purerun import metrics
from purerun.metrics import Metric, Torchmetrics
from purerun.testing.metrics import Batches

CLASSES = 3
Maker = Callable[[int], tuple[Any, Any]]
"""Batch size -> (output, batch), drawn from torch's global generator."""


def scores(size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw probabilities [size, classes] and classes [size]."""
    return torch.rand(size, CLASSES).softmax(1), {
        "image": torch.rand(size, 2),
        "label": torch.randint(CLASSES, (size,)),
    }


def binary(size: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Draw logits [size] and targets 0 or 1 [size]."""
    return torch.randn(size), (torch.rand(size, 2), torch.randint(2, (size,)))


def numbers(size: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Draw predictions [size] and targets [size] that have to do with each other."""
    target = torch.randn(size)
    return target + 0.5 * torch.randn(size), (torch.rand(size, 2), target)


def pairs(size: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Draw predictions [size, 2] and targets [size, 2]."""
    target = torch.randn(size, 2)
    return target + 0.5 * torch.randn(size, 2), (torch.rand(size, 2), target)


def pictures(size: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Draw pictures [size, 1, 16, 16] and noisy ones."""
    target = torch.rand(size, 1, 16, 16)
    return (target + 0.1 * torch.randn_like(target)).clamp(0, 1), (target, target)


def queries(size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw relevances [size], whether they are right, and which of three queries they answer."""
    return torch.rand(size), {"query": torch.randint(3, (size,)), "right": torch.randint(2, (size,))}


def tokens(size: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Draw logits [size, 4, 5] and tokens [size, 4]."""
    return torch.randn(size, 4, 5), (torch.rand(size, 2), torch.randint(5, (size, 4)))


def words(size: int) -> tuple[list[str], tuple[Tensor, list[str]]]:
    """Draw sentences of three words, twice."""
    said, meant = ([" ".join("abc"[i] for i in row) for row in torch.randint(3, (size, 3)).tolist()] for _ in "12")
    return said, (torch.rand(size), meant)


@attrs.frozen
class Row:
    """One metric, what it is fed, and what it promises.

    Attributes:
        name: of the row.
        metric: the metric.
        make: draws a batch.
        tolerance: 0 where any split gives the same bits.
        ordered: the order and the cut of the batches matter.
        grows: the tally grows with the data.
    """

    name: str
    metric: Metric
    make: Maker
    tolerance: float = 0.0
    ordered: bool = False
    grows: bool = False

    def batches(self, sizes: Sequence[int] = (4, 7, 5, 9), seed: int = 0) -> Batches:
        """Draw batches of these sizes."""
        torch.manual_seed(seed)
        return [self.make(size) for size in sizes]


def _loss(output: Tensor, batch: Any) -> Tensor:
    return torch.nn.functional.cross_entropy(output, batch["label"])


def _weighted_loss(output: Tensor, batch: Any) -> pr.Loss:
    each = torch.nn.functional.cross_entropy(output, batch["label"], reduction="none")
    weight = batch["label"] + 0.5
    return pr.Loss((each * weight).sum(), weight.sum())


def _entropy(output: Tensor, batch: Any) -> Tensor:
    return -(output * output.log()).sum(1)


def _by_label(output: Tensor, batch: Any) -> Tensor:
    return batch["label"].float()


def _for_two(size: int) -> tuple[Tensor, Any]:
    """Draw the outputs of two members for one batch."""
    output, batch = scores(size)
    return torch.stack([output, output.flip(1)]), batch


OURS = [
    Row("accuracy", metrics.Accuracy(), scores),
    Row("accuracy top 2", metrics.Accuracy(topk=2, target="label"), scores),
    Row("accuracy ignoring", metrics.Accuracy(ignore=2), scores),
    Row("confusion", metrics.ConfusionMatrix(CLASSES), scores),
    Row("confusion ignoring", metrics.ConfusionMatrix(CLASSES, ignore=0), scores),
    *(Row(f"f1 {a}", metrics.F1(CLASSES, average=a), scores) for a in ("macro", "micro", "weighted", "none")),
    Row("squared error", metrics.MeanSquaredError(), numbers, 1e-14),
    Row("absolute error", metrics.MeanAbsoluteError(), pairs, 1e-14),
    Row("mean", metrics.Mean(_entropy), scores, 1e-14),
    Row("mean weighted", metrics.Mean(_entropy, weight=_by_label), scores, 1e-14),
    Row("mean of an entry", metrics.Mean(0), numbers, 1e-14),
    # The loss itself is a float32 mean over a batch: another batch, another rounding.
    Row("loss", metrics.Loss(_loss), scores, 1e-6),
    Row("loss weighted", metrics.Loss(_weighted_loss), scores, 1e-6),
    Row("last", metrics.Last(_entropy), scores, 1e-14, ordered=True),
    # The samples are not in the first dimension, so batches cannot be joined as they are for the others.
    Row("each accuracy", metrics.Each(2, metrics.Accuracy()), _for_two, ordered=True),
    Row("each confusion", metrics.Each(2, metrics.ConfusionMatrix(CLASSES)), _for_two, ordered=True),
]


def _row(name: str, metric: Any, make: Maker, *, ordered: bool = False, grows: bool = False, **how: Any) -> Row:
    return Row(name, Torchmetrics(metric, **how), make, 2e-5, ordered=ordered, grows=grows)


def _retrieved(output: Tensor, batch: Any) -> dict[str, Tensor]:
    return {"preds": output, "target": batch["right"], "indexes": batch["query"]}


_same = tm.MeanSquaredError()


def _theirs() -> list[Row]:
    return [
        _row("tm accuracy", tmc.MulticlassAccuracy(CLASSES), scores),
        _row("tm f1", tmc.MulticlassF1Score(CLASSES), scores, target="label"),
        _row(
            "tm accuracy by sample",
            tmc.MulticlassExactMatch(5),
            lambda n: (torch.randint(5, (n, 2)), (0, torch.randint(5, (n, 2)))),
        ),
        _row("tm auroc exact", tmc.MulticlassAUROC(CLASSES), scores, grows=True),
        _row("tm auroc binned", tmc.MulticlassAUROC(CLASSES, thresholds=20), scores),
        _row("tm auroc of logits", tmc.BinaryAUROC(), binary, grows=True, preds=torch.sigmoid),
        _row("tm roc binned", tmc.BinaryROC(thresholds=5), binary, preds=torch.sigmoid),
        _row("tm average precision", tmc.MulticlassAveragePrecision(CLASSES), scores, grows=True),
        _row("tm calibration", tmc.MulticlassCalibrationError(CLASSES, n_bins=5), scores, grows=True),
        _row("tm confusion", tmc.MulticlassConfusionMatrix(CLASSES), scores),
        _row("tm kappa", tmc.MulticlassCohenKappa(CLASSES), scores),
        _row("tm jaccard", tmc.MulticlassJaccardIndex(CLASSES), scores),
        _row("tm hinge", tmc.MulticlassHingeLoss(CLASSES), scores),
        _row("tm mse", tm.MeanSquaredError(), numbers),
        _row("tm mae", tm.MeanAbsoluteError(), numbers),
        _row("tm r2", tm.R2Score(), numbers),
        _row("tm explained variance", tm.ExplainedVariance(), numbers),
        _row("tm cosine", tm.CosineSimilarity(), pairs, grows=True),
        # These stack their states: a row for each stretch.
        _row("tm pearson", tm.PearsonCorrCoef(), numbers, grows=True),
        _row("tm pearson of 2", tm.PearsonCorrCoef(num_outputs=2), pairs, grows=True),
        _row("tm concordance", tm.ConcordanceCorrCoef(), numbers, grows=True),
        # NormalizedRootMeanSquaredError is missing: torchmetrics 1.9 joins no more than two processes of it.
        _row("tm spearman", tm.SpearmanCorrCoef(), numbers, grows=True),
        _row("tm kendall", tm.KendallRankCorrCoef(), numbers, grows=True),
        _row("tm mean", tm.MeanMetric(), numbers, target=None),
        _row("tm sum", tm.SumMetric(), numbers, target=None),
        _row("tm max", tm.MaxMetric(), numbers, target=None),
        _row("tm min", tm.MinMetric(), numbers, target=None),
        _row("tm cat", tm.CatMetric(), numbers, target=None, ordered=True, grows=True),
        _row("tm psnr", PeakSignalNoiseRatio(data_range=1.0), pictures),
        _row(
            "tm psnr by picture",
            PeakSignalNoiseRatio(data_range=(0.0, 1.0), dim=(1, 2, 3), reduction="elementwise_mean"),
            pictures,
            grows=True,
        ),
        _row("tm ssim", StructuralSimilarityIndexMeasure(data_range=1.0), pictures),
        _row("tm retrieval", RetrievalMAP(), queries, grows=True, arguments=_retrieved),
        _row("tm perplexity", Perplexity(), tokens),
        _row("tm word error", WordErrorRate(), words),
        _row("tm by class", tm.ClasswiseWrapper(tmc.MulticlassRecall(CLASSES, average=None)), scores),
        _row("tm by output", tm.MultioutputWrapper(tm.MeanSquaredError(), 2), pairs),
        _row("tm composed", tm.MeanSquaredError() + 2.0 * tm.MeanAbsoluteError(), numbers),
        _row("tm shared", _same / (_same + 1.0), numbers),
    ]


with warnings.catch_warnings():
    # torchmetrics warns of the memory that lists need when such a metric is made.
    warnings.simplefilter("ignore")
    THEIRS = _theirs()

ROWS = OURS + THEIRS
