"""Merging: parts of a batch add up to the batch, in any tree, in any dtype, and without waiting for a device."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import purerun as pr
from purerun import merge
from purerun.grad import LossError

DOUBLE = torch.float64
FOLDS = {
    "one by one": lambda parts: reduce(merge.add, parts[1:], merge.weigh(parts[0])),
    "from the left": lambda parts: reduce(merge.join, map(merge.weigh, parts)),
    "in halves": lambda parts: halves([*map(merge.weigh, parts)]),
}


def halves(sums):
    """Join along a balanced tree."""
    middle = len(sums) // 2
    return merge.join(halves(sums[:middle]), halves(sums[middle:])) if middle else sums[0]


def part(value, weight, **metrics):
    """Make what one part says: the same number everywhere."""
    grads = {"a": torch.full((2,), value, dtype=DOUBLE), "b": torch.tensor(value, dtype=DOUBLE)}
    return pr.Grads(grads, weight, metrics={"loss": torch.tensor(value, dtype=DOUBLE), **metrics})


numbers = st.floats(-100, 100)
parts_of = st.lists(st.tuples(numbers, st.integers(0, 5)), min_size=1, max_size=7).filter(
    lambda parts: any(weight for _, weight in parts)
)


@pytest.mark.parametrize("kind", [int, float, torch.tensor], ids=["int", "float", "tensor"])
@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
@given(parts=parts_of)
def test_it_is_the_mean_by_weight(fold, kind, parts):
    """Parts without weight change nothing, first or last."""
    merged = merge.mean(fold([part(value, kind(weight)) for value, weight in parts]))

    total = sum(weight for _, weight in parts)
    expected = pytest.approx(sum(value * weight for value, weight in parts) / total, abs=1e-10)
    assert total == merged.weight
    assert expected == merged.grads["b"].item()
    assert expected == merged.metrics["loss"].item()
    assert [expected, expected] == merged.grads["a"].tolist()


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_nothing_at_all_has_the_mean_zero(fold):
    """Not NaN."""
    merged = merge.mean(fold([part(3.0, 0), part(4.0, 0)]))

    assert (0.0, 0.0) == (merged.grads["b"].item(), merged.metrics["loss"].item())


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_what_is_merged_is_left_alone(fold):
    """Only sums are written into, though two gradients may be one tensor."""
    shared = torch.ones(2, dtype=DOUBLE)
    parts = [pr.Grads({"a": shared, "b": shared}, weight) for weight in (1, 2, 4)]
    merged = merge.mean(fold(parts))

    assert [1.0, 1.0] == shared.tolist() == merged.grads["a"].tolist() == merged.grads["b"].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [int, torch.tensor], ids=["number", "tensor"])
@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_short_gradients_are_summed_in_a_wide_dtype(fold, kind, dtype):
    """One and 2048 ones; a count of 257 is no bfloat16 either."""
    parts = [pr.Grads({"a": torch.ones(1, dtype=dtype)}, kind(weight)) for weight in (2048, 1, 257)]
    total = fold(parts)

    assert (2306.0, torch.float32) == (total.grads["a"].item(), total.grads["a"].dtype)
    assert (1.0, dtype) == (merge.mean(total).grads["a"].item(), dtype)


def test_other_terms_are_refused():
    """With both lists."""
    first, second = part(1.0, 1, extra=torch.tensor(1.0)), part(1.0, 1)
    with pytest.raises(LossError, match=r"\['extra', 'loss'\].*\['loss'\]"):
        merge.add(merge.weigh(first), second)
    with pytest.raises(LossError, match="the same terms"):
        merge.join(merge.weigh(second), merge.weigh(first))


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_a_weight_on_a_device_is_not_waited_for(fold):
    """Tensors that have no values: whoever looks at one raises."""
    with FakeTensorMode():
        device = torch.device("cuda")
        parts = [
            pr.Grads(
                {"a": torch.ones(2, device=device)}, torch.tensor(3, device=device), metrics={"loss": torch.ones(())}
            )
            for _ in range(3)
        ]
        merged = merge.mean(fold(parts))

    assert ("cuda", torch.float32) == (merged.grads["a"].device.type, merged.grads["a"].dtype)
    assert "cuda" == merged.weight.device.type
