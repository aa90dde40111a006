"""Confusion matrix, precision, recall and F1 against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from purerun.metrics import F1, ConfusionMatrix
from purerun.testing.metrics import run

DRAWN = {"size": st.integers(1, 40), "classes": st.integers(2, 5), "seed": st.integers(0, 999)}


def _drawn(size: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(size, classes), torch.randint(classes, (size,))


@given(**DRAWN)
def test_matrix_and_scores_of_classes(size: int, classes: int, seed: int):
    """Rows are targets, columns answers; a class that never occurred scores 0."""
    scores, target = _drawn(size, classes, seed)
    metric = ConfusionMatrix(classes)

    found = metric.compute(run(metric, [(scores, (0, target))]))

    truth, answers, labels = target.numpy(), scores.argmax(1).numpy(), range(classes)
    how = {"labels": labels, "average": None, "zero_division": 0.0}
    assert np.array_equal(confusion_matrix(truth, answers, labels=labels), found["matrix"].numpy())
    assert precision_score(truth, answers, **how) == pytest.approx(found["precision"].numpy(), abs=1e-15)
    assert recall_score(truth, answers, **how) == pytest.approx(found["recall"].numpy(), abs=1e-15)
    assert f1_score(truth, answers, **how) == pytest.approx(found["f1"].numpy(), abs=1e-15)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "none"])
@given(**DRAWN)
def test_f1(average: str, size: int, classes: int, seed: int):
    """Each average is scikit-learn's; "macro" is over the classes that occurred."""
    scores, target = _drawn(size, classes, seed)
    metric = F1(classes, average=average)

    found = metric.compute(run(metric, [(scores, (0, target))])).numpy()

    truth, answers = target.numpy(), scores.argmax(1).numpy()
    labels = sorted({*truth, *answers}) if average == "macro" else range(classes)
    how = None if average == "none" else average
    assert f1_score(truth, answers, labels=labels, average=how, zero_division=0.0) == pytest.approx(found, abs=1e-15)


@pytest.mark.parametrize("metric", [ConfusionMatrix(3, ignore=-1), F1(3, ignore=-1), F1(3, "micro", ignore=-1)])
def test_ignored_targets_do_not_count(metric):
    """With ignored samples the scores are those of the others."""
    scores, target = torch.randn(20, 3), torch.randint(-1, 3, (20,))
    kept = target >= 0

    found, expected = (
        metric.compute(run(metric, [(s, (0, t))])) for s, t in [(scores, target), (scores[kept], target[kept])]
    )

    if isinstance(found, dict):
        assert {name: value.tolist() for name, value in expected.items()} == {k: v.tolist() for k, v in found.items()}
    else:
        assert float(expected) == float(found)


@pytest.mark.parametrize("outside", [3, -1])
@pytest.mark.parametrize("where", ["target", "answer"])
def test_classes_outside_make_the_scores_nan(where: str, outside: int):
    """A class that does not exist is never counted as another one."""
    right, wrong = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, outside])
    answers, target = (right, wrong) if where == "target" else (wrong, right)

    for metric in (ConfusionMatrix(3), F1(3), F1(3, "none"), F1(3, "micro"), F1(3, "weighted")):
        tally = run(metric, [(answers, (0, target))])
        found = metric.compute(tally)
        assert int(tally["outside"]) == 1
        assert all(value.isnan().all() for value in (found.values() if isinstance(found, dict) else [found]))


@pytest.mark.parametrize("metric", [ConfusionMatrix(4), F1(4)])
def test_scores_for_other_classes_are_refused(metric):
    """A model with another number of classes is an error that says both numbers."""
    with pytest.raises(ValueError, match=r"\(classes=4\) expected scores of shape \[samples, 4, ...\], got \[5, 3\]"):
        metric.update(metric.init(), torch.rand(5, 3), (0, torch.zeros(5, dtype=torch.int64)))


def test_many_classes_in_a_small_type():
    """Cells are counted in 64 bits whatever the type of the targets."""
    target = torch.arange(200, dtype=torch.uint8)
    metric = ConfusionMatrix(200)

    assert 200 == int(metric.compute(run(metric, [(target, (0, target))]))["matrix"].trace())


def test_unknown_average_is_refused():
    """An average that does not exist is refused when the metric is made."""
    with pytest.raises(ValueError, match="average"):
        F1(3, average="median")
