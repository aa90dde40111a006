"""Batches: any nest of tensors can be counted, moved, entered and described."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purerun import batch as _batch
from purerun.batch import BatchError

Pair = namedtuple("Pair", ["image", "label"])

tensors = st.lists(st.integers(0, 3), max_size=3).map(torch.zeros)
nests = st.recursive(
    st.one_of(tensors, st.text(max_size=2), st.integers()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


def shape_of(nest):
    """Say types, keys and leaves of a nest by plain recursion."""
    if isinstance(nest, torch.Tensor):
        return tuple(nest.shape)
    if isinstance(nest, dict):
        return (type(nest), [(key, shape_of(value)) for key, value in nest.items()])
    if isinstance(nest, list | tuple):
        return (type(nest), [shape_of(value) for value in nest])
    return nest


@given(nests)
def test_moving_keeps_the_shape_of_the_nest(nest):
    """Every container keeps its type, its names and its order; what is no tensor is passed through."""
    assert shape_of(nest) == shape_of(_batch.move(nest, torch.device("cpu")))


@given(nests)
def test_moving_reaches_every_tensor(nest):
    """All tensors arrive on the device."""
    assert {"meta"} >= {leaf.device.type for leaf in _batch.leaves(_batch.move(nest, torch.device("meta")))}


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(5, 2), 5),
        ({"weight": torch.zeros(()), "x": torch.zeros(3, 1)}, 3),
        ((torch.zeros(0, 2), torch.zeros(4)), 0),
        ([torch.zeros(2), torch.zeros(7)], 2),
        ({"texts": ["a", "b", "c"]}, 3),
        ([{"box": 1}, {"box": 2}], 1),
        ("a", 1),
        ({}, 1),
        ([], 1),
        (None, 1),
    ],
)
def test_the_size_is_the_first_dimension_of_the_first_tensor(batch, expected):
    """Tensors without dimensions do not count; without tensors a list of samples does."""
    assert expected == _batch.size(batch)


@given(nests)
def test_every_nest_has_a_size_and_a_description(nest):
    """Neither raises, whatever is in the nest."""
    assert _batch.size(nest) >= 0
    assert _batch.describe(nest)


@pytest.mark.parametrize(
    ("batch", "which", "expected"),
    [
        ({"a": 1, "b": 2}, 1, 2),
        ({"a": 1, "b": 2}, "a", 1),
        ({0: "zero", 1: "one"}, 1, "one"),
        ((1, 2), 0, 1),
        ([1, 2], 1, 2),
        (7, 0, 7),
        (OrderedDict(x=3), 0, 3),
    ],
)
def test_an_entry_is_found_by_name_or_by_place(batch, which, expected):
    """0 is the input and 1 the target of any usual batch."""
    assert expected == _batch.entry(batch, which)


@pytest.mark.parametrize(
    ("batch", "which", "words"),
    [
        ({"a": 1}, "b", ["'b'", "'a'"]),
        ({"a": 1}, 3, ["3", "'a'"]),
        ((1, 2), 2, ["2", "tuple of 2"]),
        (7, 1, ["1", "int"]),
    ],
)
def test_a_missing_entry_says_what_there_is(batch, which, words):
    """The error names what was asked for and what was there."""
    with pytest.raises(BatchError, match="expected a batch with an entry") as error:
        _batch.entry(batch, which)

    assert all(word in str(error.value) for word in words)


def test_a_description_names_keys_dtypes_and_shapes():
    """It is what error messages show of a batch."""
    batch = {"image": torch.zeros(2, 3), "meta": [{"id": 1}], "pair": (torch.zeros((), dtype=torch.int64), "x")}

    assert "{image: float32 [2, 3], meta: ({id: int},), pair: (int64 [], str)}" == _batch.describe(batch)
    assert "(int, int, int, int, ...)" == _batch.describe([1] * 9)


@given(st.integers(0, 9), st.integers(1, 11))
def test_parts_are_those_of_tensor_split(samples, count):
    """In their order, the first ones larger, the last ones perhaps empty; wherever the tensors are."""
    x, y = torch.arange(2 * samples).reshape(samples, 2), torch.arange(samples)
    batch = {"pair": Pair(x, [y, y + 1] if samples != 2 else (y, y + 1)), "names": [f"{n}" for n in range(samples)]}
    parts = _batch.cut(batch, count)

    assert [part.tolist() for part in x.tensor_split(count)] == [part["pair"].image.tolist() for part in parts]
    assert [part.tolist() for part in y.tensor_split(count)] == [part["pair"].label[0].tolist() for part in parts]
    assert batch["names"] == [name for part in parts for name in part["names"]]
    assert [part.shape[0] for part in y.tensor_split(count)] == [_batch.size(part) for part in parts]


@given(st.integers(1, 6))
def test_a_part_keeps_the_shape_of_the_nest(count):
    """Types, names and order; a single part is the batch."""
    batch = (torch.zeros(4, 1), OrderedDict(a=torch.zeros(4), b=7), Pair(None, {"c": torch.zeros(())}))
    parts = _batch.cut(batch, count)

    def form(nest):
        return shape_of(_batch.move(nest, torch.device("cpu")))

    assert [form(batch)] == [form(part) for part in _batch.cut(batch, 1)]
    assert all(isinstance(part[2], Pair) and part[2].label["c"] is batch[2].label["c"] for part in parts)
    assert all(7 == part[1]["b"] for part in parts)


def test_parts_share_the_memory_of_the_batch():
    """Cutting copies nothing."""
    x = torch.zeros(4, 2)

    assert {x.untyped_storage().data_ptr()} == {part.untyped_storage().data_ptr() for part in _batch.cut(x, 3)}


@pytest.mark.parametrize(
    ("batch", "first"),
    [
        ([torch.zeros(2, 3), torch.zeros(2)], [(1, 3), (1,)]),
        (
            {"x": torch.zeros(3), "boxes": [torch.zeros(n, 4) for n in (3, 1, 2)]},
            {"x": (2,), "boxes": [(3, 4), (1, 4)]},
        ),
        ((torch.zeros(3), [torch.zeros(3), torch.zeros(3, 2)]), ((2,), [(2,), (2, 2)])),
        ([["a", "b", "c"]], [["a", "b"]]),
    ],
    ids=["a list of entries", "a list of samples", "a list inside", "no tensors"],
)
def test_lists_of_samples_are_told_from_lists_of_tensors(batch, first):
    """By their length; at the top of a batch they are its entries."""

    def shapes(nest):
        if isinstance(nest, torch.Tensor):
            return tuple(nest.shape)
        if isinstance(nest, dict):
            return {key: shapes(value) for key, value in nest.items()}
        return type(nest)(map(shapes, nest)) if isinstance(nest, list | tuple) else nest

    assert first == shapes(_batch.cut(batch, 2)[0])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": torch.zeros(4, 2), "scale": torch.zeros(3)}, r"all have 4 samples.*float32 \[3\]"),
        ((torch.zeros(2, 5), [torch.zeros(2), torch.zeros(2)]), "2 entries with 2 rows.*make it a tuple"),
    ],
)
def test_what_cannot_be_cut_for_sure_is_refused(batch, words):
    """A guess would train on samples with the labels of others."""
    with pytest.raises(BatchError, match=words):
        _batch.cut(batch, 2)
