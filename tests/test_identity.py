"""Digests and differences: equal when, and only when, every saved bit is."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purerun.identity import describe, diff, digest, join, leaf_digests, named_leaves, read_bytes
from purerun.state import lazy_clone, seal

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
)

shapes = st.lists(st.integers(0, 3), max_size=3)


def state(**leaves):
    """Make a state with some leaves beside fixed ones."""
    return seal({"params": {"w": torch.arange(6.0).reshape(2, 3)}, "iter": torch.tensor(1), **leaves})


def slow_digest(state):
    """Hash a state by the definition, with numpy's bytes."""
    lines = []
    for name, tensor in named_leaves(state):
        if name == "fingerprint":
            continue
        shape = "x".join(map(str, tensor.shape)) or "-"
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        lines.append(f"{name} {str(tensor.dtype)[6:]} {shape} {hashlib.sha256(raw).hexdigest()}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@given(shapes, st.sampled_from(DTYPES), st.integers(0, 100))
def test_the_digest_follows_its_definition(shape, dtype, seed):
    """sha256 over the lines of the leaves: path, dtype, shape and the sha256 of the bytes."""
    generator = torch.Generator().manual_seed(seed)
    leaf = torch.randint(0, 2, shape, generator=generator).to(dtype)

    assert slow_digest(state(leaf=leaf)) == digest(state(leaf=leaf))


def test_the_digest_never_changes():
    """Digests of old checkpoints stay what they were: the definition is part of the format."""
    expected = "0745614a96b306ae3b36671e5c58a86d5a623d1618879415dd975b21e21020c6"

    assert expected == digest(state())


@pytest.mark.parametrize(
    "leaf",
    [
        torch.arange(6.0).reshape(3, 2).t(),
        torch.arange(12.0).reshape(2, 6)[:, ::2] / 2,
        lazy_clone(torch.arange(6.0).reshape(2, 3)),
        torch.arange(6.0).reshape(2, 3).requires_grad_(),
        torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        torch.arange(8.0)[2:].reshape(2, 3) - 2,
    ],
    ids=["transposed", "strided", "lazy", "requires grad", "parameter", "offset"],
)
def test_the_digest_sees_values_and_not_memory(leaf):
    """Layout, storage and autograd flags are no part of a state's identity."""
    dense = leaf.detach().clone(memory_format=torch.contiguous_format)

    assert describe(dense) == describe(leaf)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_single_bit_shows(dtype):
    """Flipping one bit of one leaf changes the digest, the leaf's own and no other's."""
    leaf = torch.zeros(3, dtype=dtype)
    before = state(leaf=leaf)
    flipped = leaf.clone()
    raw = flipped.view(torch.uint8)
    raw[-1 if dtype != torch.bool else 0] ^= 1
    after = state(leaf=flipped)
    old, new = leaf_digests(before), leaf_digests(after)

    assert digest(before) != digest(after)
    assert ["leaf"] == [name for name in old if old[name] != new[name]]
    assert ["leaf"] == [found.path for found in diff(before, after)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(1, 2)}),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.int32)}),
        ({"a": torch.zeros(2)}, {"a": -torch.zeros(2)}),
        ({"a": torch.zeros(2), "b": torch.ones(2)}, {"a": torch.ones(2), "b": torch.zeros(2)}),
        ({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([2.0, 1.0])}),
        ({"a": {"b": torch.zeros(1)}}, {"a/b": torch.zeros(1)}),
        ({"a/b": torch.zeros(1)}, {"a~1b": torch.zeros(1)}),
        ({"a": {"b/c": torch.zeros(1)}}, {"a/b": {"c": torch.zeros(1)}}),
        ({"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(0)}),
        ({"a": torch.tensor([], dtype=torch.float32)}, {"a": torch.tensor([], dtype=torch.float64)}),
    ],
    ids=["name", "shape", "dtype", "zero", "swap", "order", "path", "tilde", "slash", "empty", "empty dtype"],
)
def test_different_states_have_different_digests(first, second):
    """Names, shapes, dtypes, signs and places count."""
    assert digest(seal(first)) != digest(seal(second))
    assert diff(seal(first), seal(second))


def test_the_order_of_names_does_not_count():
    """A checkpoint gives names back sorted."""
    a, b = torch.zeros(1), torch.ones(1)

    assert digest(seal({"a": a, "b": {"d": a, "c": b}})) == digest(seal({"b": {"c": b, "d": a}, "a": a}))


def test_report_and_fingerprint_are_not_hashed():
    """The digest says the same numbers, the fingerprint the same program."""
    marked = state(metrics={"loss": torch.ones(1)}, fingerprint=torch.zeros(32, dtype=torch.uint8))

    assert digest(state()) == digest(marked)
    assert ["fingerprint"] == [found.path for found in diff(state(), marked)]
    assert "fingerprint" not in leaf_digests(marked)


def test_the_digest_is_joined_from_the_digests_of_the_leaves():
    """So a manifest that lists the leaves proves the whole."""
    assert digest(state()) == join(leaf_digests(state())) == join(dict(reversed(leaf_digests(state()).items())))


def test_nans_with_the_same_bits_are_equal():
    """A state that holds a NaN equals itself; NaNs with other bits do not."""
    first = torch.tensor([float("nan"), 1.0])
    second = first.clone()
    second.view(torch.int32)[0] ^= 1

    assert () == diff(state(a=first), state(a=first.clone()))
    assert digest(state(a=first)) != digest(state(a=second))
    assert ["a"] == [found.path for found in diff(state(a=first), state(a=second))]


@pytest.mark.parametrize(
    ("first", "second", "words", "largest", "count"),
    [
        (torch.zeros(3), torch.tensor([0.0, 0.5, -2.0]), "2 of 3 elements differ, by at most 2", 2.0, 2),
        (torch.tensor(2**62), torch.tensor(2**62 + 1), "1 of 1 elements differ, by at most 1", 1.0, 1),
        (torch.tensor([True, False]), torch.tensor([True, True]), "1 of 2 elements differ, by at most 1", 1.0, 1),
        (torch.zeros(2), torch.tensor([float("nan"), 0.0]), "1 of 2 elements differ", None, 1),
        (torch.zeros(2), torch.tensor([float("inf"), 0.0]), "1 of 2 elements differ, by at most inf", float("inf"), 1),
        (torch.zeros(2), -torch.zeros(2), "2 of 2 elements differ", None, 2),
        (torch.tensor([1j, 0]), torch.tensor([2j, 0]), "1 of 2 elements differ, by at most 1", 1.0, 1),
    ],
    ids=["floats", "large integers", "booleans", "nan", "infinity", "signed zero", "complex"],
)
def test_a_difference_says_how_much(first, second, words, largest, count):
    """How many elements, and by how much at most."""
    (found,) = diff(state(a=first), state(a=second))

    assert "a" == found.path
    assert words in str(found)
    assert count == found.count
    assert largest is None or largest == found.largest


def test_a_difference_in_form_says_which():
    """Missing leaves, shapes and dtypes are told in words."""
    left, right = state(a=torch.zeros(2), b=torch.zeros(2)), state(a=torch.zeros(3), c=torch.zeros(2))

    assert [
        "a: torch.float32 [2] against torch.float32 [3]",
        "b: only in the first",
        "c: only in the second",
    ] == [str(found) for found in diff(left, right)]


def test_looking_at_bytes_does_not_copy_lazy_memory():
    """Hashing a state that shares memory with the next one costs no memory."""
    tensor = torch.zeros(1000)
    clone = lazy_clone(tensor)
    before = tensor.const_data_ptr()

    assert bytes(4000) == bytes(read_bytes(clone))
    assert before == tensor.const_data_ptr() == clone.const_data_ptr()


def test_bytes_outlive_the_tensor_they_were_read_from():
    """A view of the bytes keeps the memory alive."""
    view = read_bytes(torch.full((1000,), 3, dtype=torch.uint8))
    _ = [torch.zeros(1000, dtype=torch.uint8) for _ in range(50)]

    assert bytes([3]) * 1000 == bytes(view)
    with pytest.raises(TypeError):
        view[0] = 1
