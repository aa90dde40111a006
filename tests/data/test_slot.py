"""The slot of a stream: any data, in a tensor of fixed size, and nothing that is code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purerun.data.slot import empty, pack, unpack
from tests.data.samples import same

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
DATA = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@given(DATA)
def test_what_is_packed_comes_out(data):
    """Every nest of plain data survives, with its types."""
    assert same(data, unpack(pack(data)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64, torch.bool])
def test_tensors_and_arrays_come_out(dtype):
    """Tensors and arrays keep dtype, shape and every bit; a state of torch's generator is one."""
    tensor = torch.arange(6).view(2, 3).to(dtype)
    found = unpack(pack({"tensor": tensor, "array": tensor.numpy(), "number": np.float32(0.5)}))

    assert same(tensor, found["tensor"])
    assert (tensor.numpy().dtype, tensor.tolist()) == (found["array"].dtype, found["array"].tolist())
    assert 0.5 == found["number"]
    assert same(torch.get_rng_state(), unpack(pack(torch.get_rng_state())))


def test_a_slot_keeps_its_shape():
    """Whatever it holds, a slot is uint8 of its capacity; an empty one holds nothing."""
    assert [(torch.uint8, (100,))] * 3 == [
        (slot.dtype, tuple(slot.shape)) for slot in (empty(100), pack({}, 100), pack(list(range(10)), 100))
    ]
    assert unpack(empty(100)) is None


def test_what_does_not_fit_is_refused():
    """Too much, and what is not data, are errors that say what to do."""
    with pytest.raises(ValueError, match=r"of at most 92 bytes, got 202; give the source a larger capacity"):
        pack("x" * 200, 100)
    with pytest.raises(TypeError, match="expected data in a stream's state, got object"):
        pack({"x": object()})
