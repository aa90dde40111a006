"""Accuracy against scikit-learn, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from purerun.metrics import Accuracy
from purerun.testing.metrics import run


@given(size=st.integers(1, 50), classes=st.integers(2, 6), seed=st.integers(0, 999))
def test_top_1(size: int, classes: int, seed: int):
    """The share of highest scores that are right."""
    torch.manual_seed(seed)
    scores, target = torch.randn(size, classes), torch.randint(classes, (size,))

    metric = Accuracy()

    expected = accuracy_score(target.numpy(), scores.argmax(1).numpy())
    assert expected == float(metric.compute(run(metric, [(scores, (0, target))])))


@given(size=st.integers(1, 50), k=st.integers(2, 5), seed=st.integers(0, 999))
def test_top_k(size: int, k: int, seed: int):
    """The share of targets among the k highest scores."""
    torch.manual_seed(seed)
    scores, target = torch.randn(size, 6), torch.randint(6, (size,))

    metric = Accuracy(topk=k)

    expected = top_k_accuracy_score(target.numpy(), scores.numpy(), k=k, labels=range(6))
    assert expected == pytest.approx(float(metric.compute(run(metric, [(scores, (0, target))]))), abs=1e-15)


def test_dense_targets_with_ignored_ones():
    """Each pixel is a sample, and those to ignore do not count, in small integer types too."""
    scores = torch.randn(2, 5, 4, 4)
    target = torch.randint(5, (2, 4, 4), dtype=torch.uint8)
    target[0, :2] = 255
    kept = target != 255

    metric = Accuracy(ignore=255)

    expected = (scores.argmax(1)[kept] == target[kept]).double().mean()
    assert float(expected) == float(metric.compute(run(metric, [(scores, (0, target))])))


def test_entries_by_name():
    """Scores and targets are taken from the entries that are named; class numbers are scores enough."""
    output, batch = {"aux": 0, "class": torch.tensor([1, 2, 0])}, {"x": 0, "y": torch.tensor([1, 2, 2])}

    metric = Accuracy(target="y", output="class")

    assert {"correct": 2, "total": 3} == {k: int(v) for k, v in metric.update(metric.init(), output, batch).items()}


def test_no_sample_is_nan():
    """The accuracy of nothing is not a number, and neither is its blank."""
    metric = Accuracy()

    assert metric.compute(metric.init()).isnan()
    assert metric.blank().isnan()


@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        (torch.rand(4), torch.zeros(4, dtype=torch.int64), r"got float32 \[4\] and int64 \[4\]"),
        (torch.rand(4, 3), torch.zeros(5, dtype=torch.int64), "the target's shape is the scores' without"),
        (torch.rand(4, 3), torch.zeros(4, 1, dtype=torch.int64), "the target's shape is the scores' without"),
    ],
)
def test_shapes_that_do_not_fit(output, target, message):
    """Shapes that would broadcast into nonsense are refused, and both are named."""
    with pytest.raises(ValueError, match=message):
        Accuracy().update(Accuracy().init(), output, (0, target))


@pytest.mark.parametrize("target", [torch.rand(4), [0, 1, 2, 0]])
def test_targets_of_another_kind(target):
    """Targets that are no class numbers are refused."""
    with pytest.raises(TypeError, match="Accuracy expected floating scores"):
        Accuracy().update(Accuracy().init(), torch.rand(4, 3), (0, target))


def test_too_few_classes():
    """More answers than classes are refused."""
    target = torch.zeros(4, dtype=torch.int64)

    with pytest.raises(ValueError, match=r"Accuracy\(topk=5\) expected scores of at least 5 classes, got 3 classes"):
        Accuracy(topk=5).update(Accuracy().init(), torch.rand(4, 3), (0, target))
    with pytest.raises(ValueError, match="got class numbers"):
        Accuracy(topk=2).update(Accuracy().init(), target, (0, target))
