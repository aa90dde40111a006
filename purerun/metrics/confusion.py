"""Which class was taken for which, and what follows from it: precision, recall and F1."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from purerun import batch as _batch
from purerun.metrics.decision import answers
from purerun.metrics.metric import Metric, Tally, added

Average = Literal["macro", "micro", "weighted", "none"]


@attrs.frozen
class ConfusionMatrix(Metric):
    """Count which class was taken for which.

    Counts are int64: any split of the data gives the same bits.  A target or an answer
    outside 0 ... classes - 1 that is not `ignore` makes every score NaN: no device value is
    read, so no error can be raised.

    Scores: `matrix` [classes, classes] (row: target, column: answer), and for each class
    `precision`, `recall` and `f1` [classes], 0 where nothing was there to divide by.

    Attributes:
        classes: how many classes there are.
        target: which entry of the batch holds the class numbers, int [samples, ...].
        output: which entry of the output holds the scores, [samples, classes, ...], or class
            numbers, int [samples, ...].
        ignore: a target that does not count.

    >>> metric = ConfusionMatrix(2)
    >>> answers, targets = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    >>> scores = metric.compute(metric.update(metric.init(), answers, (None, targets)))
    >>> scores["matrix"].tolist(), scores["precision"].tolist()
    ([[1.0, 0.0], [1.0, 2.0]], [0.5, 1.0])
    """

    classes: int = attrs.field(validator=attrs.validators.ge(1))
    target: str | int = attrs.field(default=1, kw_only=True)
    output: str | int = attrs.field(default=0, kw_only=True)
    ignore: int | None = attrs.field(default=None, kw_only=True)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        return {
            "matrix": torch.zeros(self.classes, self.classes, dtype=torch.int64, device=device),
            "outside": torch.zeros((), dtype=torch.int64, device=device),
        }

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Count a batch.

        Raises:
            TypeError: the output or the target is of another kind.
            ValueError: their shapes do not fit, or there are scores for another number of classes.
        """
        answer, target, outside = _pairs(self, output, batch)
        # Where either is outside, so is the pair: one cell beyond the matrix.
        cell = torch.where(target < self.classes, target * self.classes + answer, self.classes**2)
        matrix = _counts(cell, self.classes**2).view(self.classes, self.classes)
        return {"matrix": tally["matrix"] + matrix, "outside": tally["outside"] + outside}

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Add up."""
        return added(a, b)

    def compute(self, tally: Tally) -> dict[str, Tensor]:
        """Read off the matrix, and precision, recall and F1 of each class."""
        matrix = tally["matrix"].double()
        hits, answered, wanted = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
        scores = {
            "matrix": matrix,
            "precision": _ratio(hits, answered),
            "recall": _ratio(hits, wanted),
            "f1": _ratio(2 * hits, answered + wanted),
        }
        return {name: _known(score, tally) for name, score in scores.items()}


@attrs.frozen
class F1(Metric):
    """The F1 score: 2 * hits / (answers + targets) of a class, averaged over the classes.

    Counts are int64: any split of the data gives the same bits.  NaN for a target or an
    answer outside 0 ... classes - 1, as in `ConfusionMatrix`.

    Attributes:
        classes: how many classes there are.
        average: "macro" gives each class that occurred (as a target or as an answer) the same
            weight, "weighted" as much as it has targets; "micro" counts over all classes
            together (the accuracy); "none" gives the score of each class, [classes].
        target: as in `ConfusionMatrix`.
        output: as in `ConfusionMatrix`.
        ignore: as in `ConfusionMatrix`.

    >>> metric = F1(3)
    >>> answers, targets = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    >>> round(float(metric.compute(metric.update(metric.init(), answers, (None, targets)))), 4)
    0.7333
    """

    classes: int = attrs.field(validator=attrs.validators.ge(1))
    average: Average = attrs.field(
        default="macro", validator=attrs.validators.in_(("macro", "micro", "weighted", "none"))
    )
    target: str | int = attrs.field(default=1, kw_only=True)
    output: str | int = attrs.field(default=0, kw_only=True)
    ignore: int | None = attrs.field(default=None, kw_only=True)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        each = {
            name: torch.zeros(self.classes, dtype=torch.int64, device=device) for name in ("hits", "answered", "wanted")
        }
        return {**each, "outside": torch.zeros((), dtype=torch.int64, device=device)}

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Count a batch.

        Raises:
            TypeError: the output or the target is of another kind.
            ValueError: their shapes do not fit, or there are scores for another number of classes.
        """
        answer, target, outside = _pairs(self, output, batch)
        hit = torch.where(answer == target, target, self.classes)
        counts = {"hits": hit, "answered": answer, "wanted": target}
        new = {name: _counts(index, self.classes) for name, index in counts.items()}
        return added(tally, {**new, "outside": outside})

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Add up."""
        return added(a, b)

    def compute(self, tally: Tally) -> Tensor:
        """Average the scores of the classes: NaN where none occurred."""
        hits, answered, wanted = (tally[name].double() for name in ("hits", "answered", "wanted"))
        if self.average == "micro":
            return _known(2 * hits.sum() / (answered + wanted).sum(), tally)
        score = _ratio(2 * hits, answered + wanted)
        if self.average == "none":
            return _known(score, tally)
        weight = wanted if self.average == "weighted" else (answered + wanted > 0).double()
        return _known((score * weight).sum() / weight.sum(), tally)


def _pairs(metric: ConfusionMatrix | F1, output: Any, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """List (answer, target) of what counts, flat; both are `classes` where the pair does not count."""
    scores, target = _batch.entry(output, metric.output), _batch.entry(batch, metric.target)
    name, classes = type(metric).__name__, metric.classes
    found = answers(name, scores, target, ignore=metric.ignore)
    target = found.target
    if found.scores is not None and found.scores.shape[1] != classes:
        raise ValueError(
            f"{name}(classes={classes}) expected scores of shape [samples, {classes}, ...], "
            f"got {list(found.scores.shape)}; give the number of classes that the model has"
        )
    inside = (target >= 0) & (target < classes) & (found.decided >= 0) & (found.decided < classes)
    outside = ~inside if found.counted is None else ~inside & found.counted
    kept = inside if found.counted is None else inside & found.counted
    answer, wanted = (torch.where(kept, index, classes).flatten() for index in (found.decided, target))
    return answer, wanted, outside.sum()


def _counts(index: Tensor, size: int) -> Tensor:
    """Count how often each of 0 ... size - 1 occurs; `size` itself is left out."""
    # bincount would wait for the device, and has no deterministic form on some.
    counts = torch.zeros(size + 1, dtype=torch.int64, device=index.device)
    return counts.scatter_add(0, index, torch.ones_like(index))[:size]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), 0.0)


def _known(score: Tensor, tally: Tally) -> Tensor:
    return torch.where(tally["outside"] == 0, score, float("nan"))
