"""A cell gives back what it keeps, with its type, in leaves whose shapes never change."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from purerun.optim.cells import ABSENT, Cell, Either, Row, Stack, Unkeepable
from purerun.optim.look import merged, roomy, seen, settled

tensors = st.sampled_from([torch.zeros(2), torch.tensor([1.0, -0.0]), torch.tensor([float("nan"), 2.0])])
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.sampled_from(["a", "b"]),
    st.just(ABSENT),
    tensors,
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner.filter(lambda value: value is not ABSENT), max_size=3)
        | st.lists(inner.filter(lambda value: value is not ABSENT), max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("xyz"), inner.filter(lambda value: value is not ABSENT), max_size=3)
    ),
    max_leaves=6,
)


def flat(leaf, path=""):
    if leaf is None:
        return {}
    if isinstance(leaf, Tensor):
        return {path: (leaf.shape, leaf.dtype)}
    return {key: spec for name, inner in leaf.items() for key, spec in flat(inner, f"{path}/{name}").items()}


def same(a, b):
    """Compare values by type and bits."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a.view(torch.int32), b.view(torch.int32))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


@settings(deadline=None, max_examples=300)
@given(st.lists(values, min_size=1, max_size=5))
def test_keeps_all_that_was_seen(samples):
    """Whatever mixture of values a cell was made for, it keeps each, in any order, in leaves of one shape."""
    try:
        cell = settled(functools.reduce(merged, map(seen, samples)), capacity=5)
    except Unkeepable:
        return  # lists of tuples, say; what is refused is refused before anything is kept
    leaf = cell.blank()
    expected = flat(leaf)
    for value in samples:
        leaf = cell.keep(value, leaf)

        assert expected == flat(leaf)
        assert same(value, cell.load(leaf))


@settings(deadline=None, max_examples=100)
@given(values, values)
def test_merging_has_no_order(a, b):
    """Two values make one cell whichever came first, and a cell merged with itself is itself."""
    cells = [seen(a), seen(b)]
    try:
        expected = settled(merged(*cells), 3)
    except Unkeepable:
        with pytest.raises(Unkeepable):
            settled(merged(*reversed(cells)), 3)
        return

    assert flat(expected.blank()) == flat(settled(merged(*reversed(cells)), 3).blank())
    assert merged(cells[0], cells[0]) == cells[0]


def test_a_tensor_is_kept_in_place():
    """A tensor that was written into is its own leaf; another is cloned, so that nothing else is in the state."""
    cell = seen(torch.zeros(2))
    leaf = cell.blank()
    value = cell.load(leaf)
    value += 1

    assert cell.keep(value, leaf) is leaf
    other = torch.ones(2)
    kept = cell.keep(other, leaf)
    other += 1
    assert kept.tolist() == [1.0, 1.0]


def test_equal_values_are_equal_bits():
    """What a cell no longer holds leaves no trace in its leaves."""
    cell = functools.reduce(merged, map(seen, [None, 1.5, torch.ones(2)]))
    fresh = cell.keep(None, cell.blank())
    used = cell.keep(None, cell.keep(2.5, cell.keep(torch.ones(2), cell.blank())))

    assert all(torch.equal(fresh[name], used[name]) for name in fresh)


def test_lists_take_their_form():
    """Like items are stacked, unlike ones stand in a row, and one that grows wants a capacity."""
    assert isinstance(settled(seen([torch.zeros(2), torch.ones(2)]), None), Stack)
    assert isinstance(settled(seen([torch.zeros(2), torch.ones(3)]), None), Row)
    grown = merged(seen([1.0]), seen([1.0, 2.0]))
    assert settled(grown, 7).capacity == 7
    with pytest.raises(Unkeepable, match="one that grows; say how far with capacity="):
        settled(grown, None)


def test_numbers_of_two_types_get_room_for_three():
    """A step length that is an int here and a float there may be a tensor elsewhere."""
    cell = roomy(merged(seen(1), seen(2.0)), torch.zeros((), dtype=torch.float64))

    assert isinstance(cell, Either)
    assert {"int", "float", "tensor"} == {option.kind for option in cell.cells}
    assert cell.load(cell.keep(torch.tensor(3.0, dtype=torch.float64), cell.blank())) == 3.0
    assert roomy(seen(1.0), torch.zeros(())) == seen(1.0)


@pytest.mark.parametrize(
    ("samples", "value", "said"),
    [
        ([torch.zeros(2)], torch.zeros(3), r"a tensor of torch.float32 \[2\], got a tensor of torch.float32 \[3\]"),
        ([1], 1.0, r"a int, got 1.0 \(float\)"),
        (["a"], "b", "'a' as always before, got 'b'"),
        ([None, 1], "x", r"one of \['=None', 'int'\], got 'x'"),
        ([[1.0, torch.zeros(2), torch.ones(3)]], [1.0], "a list of 3 items"),
        ([{"a": 1}], {"b": 1}, r"a dict of \['a'\]"),
        ([[1.0], []], [1.0] * 4, "a list of at most 3 items, got 4"),
        ([[1.0], []], 1.0, "a list, got 1.0"),
    ],
)
def test_what_was_never_seen_is_refused(samples, value, said):
    """A value that the cell has no place for is an error that says both."""
    cell: Cell = settled(functools.reduce(merged, map(seen, samples)), 3)
    with pytest.raises(Unkeepable, match=said):
        cell.keep(value, cell.blank())


@pytest.mark.parametrize("value", [torch.zeros(2, 2).to_sparse(), object(), {1: 2}, 1j])
def test_strange_things_are_refused(value):
    """What no tensor can hold is refused."""
    with pytest.raises(Unkeepable, match=r"dense tensor|tensors, numbers, None"):
        seen(value)


def test_tensors_of_two_shapes_are_refused():
    """A tensor that changes its shape has no place of constant shape."""
    with pytest.raises(Unkeepable, match=r"tensors of one shape, got torch.float32 \[2\] and torch.float32 \[3\]"):
        merged(seen(torch.zeros(2)), seen(torch.zeros(3)))
