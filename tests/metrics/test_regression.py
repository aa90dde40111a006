"""Squared and absolute errors against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, mean_squared_error

from purerun.metrics import MeanAbsoluteError, MeanSquaredError
from purerun.testing.metrics import run

PAIRS = [(MeanSquaredError, mean_squared_error), (MeanAbsoluteError, mean_absolute_error)]


@pytest.mark.parametrize(("make", "oracle"), PAIRS)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_errors(make, oracle, sizes: list[int], seed: int):
    """The mean over all elements of all batches, in double precision."""
    torch.manual_seed(seed)
    batches = [(torch.randn(size, 3), {"x": 0, "y": torch.randn(size, 3)}) for size in sizes]
    metric = make(target="y")

    found, target = torch.cat([o for o, _ in batches]).double(), torch.cat([b["y"] for _, b in batches]).double()
    assert oracle(target.numpy(), found.numpy()) == pytest.approx(
        float(metric.compute(run(metric, batches))), rel=1e-13
    )


@pytest.mark.parametrize("make", [MeanSquaredError, MeanAbsoluteError])
def test_shapes_that_would_broadcast_are_refused(make):
    """Predictions [n, 1] against targets [n] would make n * n differences."""
    with pytest.raises(ValueError, match=r"of one shape, got float32 \[4, 1\] and float32 \[4\]; reshape"):
        make().update(make().init(), torch.rand(4, 1), (0, torch.rand(4)))
    with pytest.raises(TypeError, match="name the entries"):
        make().update(make().init(), torch.rand(4), (0, "a"))
