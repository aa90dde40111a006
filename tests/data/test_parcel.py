"""Parcels and nests: batches taken apart, put together, cut."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purerun.data.nest import cut, mapped, pinned, replaced
from purerun.data.parcel import Parcel, parcel
from tests.data.samples import Pair, same

SHAPES = st.lists(st.integers(0, 4), max_size=3)
TENSORS = st.builds(
    lambda shape, dtype: torch.randint(0, 2, shape).to(dtype),
    SHAPES,
    st.sampled_from([torch.float32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.bfloat16]),
)
BATCHES = st.recursive(
    TENSORS | st.text(max_size=3) | st.integers() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=6,
)


@given(BATCHES)
def test_a_parcel_comes_out_as_it_went_in(batch):
    """Whatever the nest, every type, dtype, shape and bit is back."""
    assert same(batch, parcel(batch).unwrapped())


def test_a_small_batch_is_one_array_and_a_large_one_one_tensor():
    """No tensor is left in the nest of a simple batch."""
    small = parcel({"x": torch.zeros(3), "y": [torch.zeros(2, 2), torch.zeros(())]})
    large = parcel({"x": torch.zeros(1_000_000), "y": torch.arange(3)})

    assert [[], []] == [tensors(one) for one in (small, large)]
    assert isinstance(large.buffer, torch.Tensor)
    assert large.buffer.is_shared()
    assert not isinstance(small.buffer, torch.Tensor)
    assert torch.equal(torch.arange(3), large.unwrapped()["y"])


def test_tensors_begin_where_torch_would_let_them_begin():
    """Small or large, what comes out of a pipe is aligned again."""
    for size in (3, 100_000):
        sent = parcel({"a": torch.zeros(3), "b": torch.zeros(size)})
        received = np.empty(len(sent.buffer) + 1, np.uint8)[1:]
        received[:] = sent.buffer
        batch = Parcel(sent.nest, received).unwrapped()
        assert [0, 0] == [tensor.data_ptr() % 64 for tensor in batch.values()]
        assert torch.equal(torch.zeros(size), batch["b"])


def test_what_would_change_travels_by_itself():
    """Strided tensors keep their strides, gradients their flag, and large shared memory is not copied again."""
    strided, leaf = torch.zeros(2, 3).T, torch.zeros(2, requires_grad=True)
    shared = torch.zeros(1_000_000).share_memory_()
    found = parcel([strided, leaf, shared, torch.ones(2)])

    assert [strided, leaf, shared] == tensors(found)
    assert torch.equal(torch.ones(2), found.unwrapped()[3])


def tensors(one: Parcel):
    found = []
    mapped(lambda tensor: found.append(tensor) or tensor, one.nest)
    return found


def test_the_same_tensor_twice_is_equal_twice():
    """Aliases within a batch are fine."""
    x = torch.arange(3)

    assert same([x, x], parcel([x, x]).unwrapped())


def test_pinning_keeps_the_batch():
    """Where there is no accelerator nothing happens."""
    batch = {"x": torch.arange(3), "y": "a"}

    assert same(batch, pinned(batch))
    assert same(batch, parcel(batch).pin_memory().unwrapped())


@given(st.integers(0, 6), st.integers(0, 6))
def test_cuts_of_a_batch_are_cuts_of_its_tensors(start, stop):
    """Tensors and lists of the batch's length are cut, other things stay, the kinds of nests stay."""
    x, y = torch.arange(12).view(6, 2), torch.arange(6.0)
    batch = OrderedDict(pair=Pair(x, [y, y]), names=list("abcdef"), scale=2.0, zero=torch.tensor(3))
    expected = OrderedDict(
        pair=Pair(x[start:stop], [y[start:stop], y[start:stop]]),
        names=list("abcdef")[start:stop],
        scale=2.0,
        zero=torch.tensor(3),
    )

    assert same(expected, cut(batch, start, stop))


def test_a_batch_of_unequal_tensors_cannot_be_cut():
    """The message says which shape does not fit."""
    with pytest.raises(ValueError, match=r"expected tensors of 3 samples, got one of shape \[2\]"):
        cut({"x": torch.zeros(3), "y": torch.zeros(2)}, 0, 1)


def test_an_entry_is_replaced_in_a_batch_of_its_kind():
    """By name or place; the old batch stays."""
    batch = OrderedDict(x=1, y=2)

    assert same(OrderedDict(x=1, y=3), replaced(batch, "y", 3))
    assert same(OrderedDict(x=3, y=2), replaced(batch, 0, 3))
    assert same(Pair(1, 3), replaced(Pair(1, 2), 1, 3))
    assert 3 == replaced(torch.zeros(2), 0, 3)
    assert OrderedDict(x=1, y=2) == batch
