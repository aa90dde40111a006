"""What a classifier decided, and what would have been right: class numbers from scores and targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from purerun import batch as _batch


class Answers(NamedTuple):
    """Scores and targets of a batch, checked to fit.

    Attributes:
        scores: shape [samples, classes, ...], or None where the output is class numbers.
        decided: int64, shape [samples, ...]: the class of the highest score.
        target: int64, the same shape.
        counted: bool, the same shape; None where every target counts.
    """

    scores: Tensor | None
    decided: Tensor
    target: Tensor
    counted: Tensor | None


def answers(metric: str, scores: Any, target: Any, *, ignore: int | None) -> Answers:
    """Check scores [samples, classes, ...], or class numbers [samples, ...], against targets [samples, ...].

    Args:
        metric: whose errors these are.
        scores: a floating tensor of scores, or an integer one of class numbers.
        target: integer tensor of class numbers.
        ignore: a target that does not count.

    >>> answers("Accuracy", torch.eye(3), torch.tensor([0, 1, 9]), ignore=9).counted
    tensor([ True,  True, False])

    Raises:
        TypeError: something else than such tensors.
        ValueError: shapes that do not fit.
    """
    _check(metric, scores, target)
    # Small integer types would overflow in the products that follow.
    target = target.to(torch.int64)
    counted = None if ignore is None else target != ignore
    if scores.is_floating_point():
        return Answers(scores, scores.argmax(1), target, counted)
    return Answers(None, scores.to(torch.int64), target, counted)


def _check(metric: str, scores: Any, target: Any) -> None:
    wanted = (
        "floating scores [samples, classes, ...] (or integer classes [samples, ...]) and integer targets [samples, ...]"
    )
    got = f"{metric} expected {wanted}, got {_batch.describe(scores)} and {_batch.describe(target)}"
    if not isinstance(scores, Tensor) or not isinstance(target, Tensor):
        raise TypeError(f"{got}; name the entries with `output` and `target`")
    if target.is_floating_point():
        raise TypeError(f"{got}; make class numbers of the targets, e.g. with .argmax(1)")
    fits = (scores.shape[:1] + scores.shape[2:]) if scores.is_floating_point() else scores.shape
    if target.shape != fits or (scores.is_floating_point() and scores.ndim < 2):
        raise ValueError(f"{got}; the target's shape is the scores' without the dimension of classes")
