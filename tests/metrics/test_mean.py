"""Means: of losses, of quantities, and of the last batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import purerun as pr
from purerun.metrics import Last, Loss, Mean
from purerun.testing.metrics import run

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(sizes=SIZES)
def test_a_loss_is_weighted_by_the_batch_size(sizes: list[int]):
    """The mean over unequal batches is the mean over samples."""
    values = [torch.randn(size, dtype=torch.float64) for size in sizes]
    metric = Loss(lambda output, batch: output.mean())

    found = metric.compute(run(metric, [(value, value) for value in values]))

    assert float(torch.cat(values).mean()) == pytest.approx(float(found), abs=1e-14)


def test_a_weighted_loss_brings_its_own_weight():
    """A `pr.Loss` counts by its own weight: tokens instead of sentences."""
    metric = Loss(lambda output, batch: pr.Loss(output.sum(), weight=output.numel()))
    batches = [(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1)), (torch.tensor([[10.0]]), torch.zeros(1))]

    assert 4.0 == float(metric.compute(run(metric, batches)))


def test_a_loss_of_many_numbers_is_refused():
    """A loss that was not reduced is an error that says so."""
    metric = Loss(lambda output, batch: output)

    with pytest.raises(ValueError, match=r"got a tensor of shape \[3\]; reduce it"):
        metric.update(metric.init(), torch.rand(3), torch.rand(3))


@given(sizes=SIZES)
def test_mean_of_elements_and_of_batch_means_agree(sizes: list[int]):
    """One number a sample, or the mean of each batch: the same mean."""
    values = [torch.randn(size, dtype=torch.float64) for size in sizes]
    batches = [({"energy": value, "mean": value.mean()}, value) for value in values]

    by_sample, by_batch = Mean("energy"), Mean("mean")

    expected = pytest.approx(float(torch.cat(values).mean()), abs=1e-14)
    assert expected == float(by_sample.compute(run(by_sample, batches)))
    assert expected == float(by_batch.compute(run(by_batch, batches)))


def test_weighted_mean():
    """Weights are numpy's: one for each element, or one for the batch."""
    values, weights = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    each = Mean(0, weight=lambda output, batch: batch)
    whole = Mean(0, weight=lambda output, batch: batch.sum())

    expected = np.average(values.numpy(), weights=weights.numpy())
    assert expected == pytest.approx(float(each.compute(run(each, zip(values, weights, strict=True)))))
    expected = np.average(values.mean(1).numpy(), weights=weights.sum(1).numpy())
    assert expected == pytest.approx(float(whole.compute(run(whole, zip(values, weights, strict=True)))))


def test_weights_of_another_shape_are_refused():
    """Weights that would broadcast are an error."""
    metric = Mean(0, weight=lambda output, batch: torch.ones(3, 1))

    with pytest.raises(ValueError, match=r"one for each element of \[3\], got \[3, 1\]"):
        metric.update(metric.init(), torch.rand(3), torch.rand(3))


def test_no_quantity_is_refused():
    """What cannot be averaged is named, with what the output holds."""
    with pytest.raises(TypeError, match=r"got str from the output \{name: str\}"):
        Mean("name").update(Mean().init(), {"name": "a"}, torch.rand(3))


@pytest.mark.parametrize("metric", [Mean(), Mean(lambda o, b: o.mean()), Loss(lambda o, b: o.mean()), Last()])
def test_an_empty_batch_changes_nothing(metric):
    """A batch without samples has a mean of NaN and a weight of 0: it is not counted."""
    full, empty = torch.tensor([1.0, 3.0]), torch.empty(0)

    assert 2.0 == float(metric.compute(run(metric, [(full, full), (empty, empty)])))
    assert math.isnan(float(metric.compute(run(metric, [(empty, empty)]))))


def test_nan_is_not_hidden():
    """A NaN among the values is a NaN in the mean."""
    metric = Mean()
    value = torch.tensor([1.0, float("nan")])

    assert metric.compute(run(metric, [(value, value)])).isnan()


def test_sums_are_kept_in_double():
    """A million small numbers beside a large one are not lost."""
    metric = Mean()
    values = [torch.tensor([1e8]), *[torch.full((1000,), 0.1, dtype=torch.float64)] * 1000]

    found = float(metric.compute(run(metric, [(value, value) for value in values])))

    assert (1e8 + 1e5) / (1e6 + 1) == pytest.approx(found, rel=1e-12)


def test_python_numbers_count_in_double():
    """A quantity that is a Python number is not rounded to float32."""
    metric = Mean(lambda output, batch: 0.1)

    assert 0.1 == float(metric.compute(run(metric, [(0, torch.zeros(1))])))


def test_last_over_time_and_over_processes():
    """Over time the newest batch is the score; over processes the parts of it are averaged."""
    metric = Last()
    early, late = (run(metric, [(value, value)]) for value in (torch.tensor([1.0, 5.0]), torch.tensor([6.0])))

    assert 6.0 == float(metric.compute(metric.merge(early, late)))
    assert 6.0 == float(metric.compute(metric.merge(late, metric.init())))
    assert 4.0 == float(metric.compute(metric.reduce([early, late, metric.init()])))


@pytest.mark.parametrize("metric", [Mean(), Last()])
def test_reducing_nobody_is_refused(metric):
    """Without processes there is nothing to join."""
    with pytest.raises(ValueError, match="expected the tally of at least one process"):
        metric.reduce([])
