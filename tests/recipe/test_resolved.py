"""A recipe as data: complete, stable, and comparable."""

from __future__ import annotations

import functools
import json
import re
import tomllib
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun import program
from purerun.recipe import RecipeError, differences, load, override, resolved, text

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "digits.py"


def leaves(data, path=()):
    """Walk over a resolved recipe as (path, value)."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, (*path, key))
    elif isinstance(data, list):
        for place, value in enumerate(data):
            yield from leaves(value, (*path, str(place)))
    else:
        yield ".".join(path), data


def test_the_digits_recipe_resolves_to_its_golden_text():
    """Whatever changes a value of the recipe, a default included, shows in a diff of `digits.toml`."""
    golden = Path(__file__).with_name("digits.toml")

    assert golden.read_text() == text(load(RECIPE))


def test_the_text_is_the_data():
    """TOML holds what `resolved` says, and so does the JSON of a manifest."""
    recipe = load(RECIPE)

    assert resolved(recipe) == tomllib.loads(text(recipe))
    assert resolved(recipe) == json.loads(json.dumps(resolved(recipe), allow_nan=False))


def test_each_path_is_one_for_set():
    """Setting every value to itself makes the same recipe; only functions and names of classes cannot be set."""
    recipe = load(RECIPE)
    data = dict(leaves(resolved(recipe)))
    settings = [
        f"{path}={value}" for path, value in data.items() if path.split(".")[-1] not in ("class", "loss", "forward")
    ]

    assert len(settings) > 60
    assert data == dict(leaves(resolved(override(recipe, settings))))


@pytest.mark.parametrize("path", ["loss", "forward"])
def test_a_function_cannot_be_set(path):
    """No text is a name to import: data never becomes code."""
    with pytest.raises(RecipeError, match=f"expected .*Callable.* for {path}, got 'os.system'"):
        override(load(RECIPE), [f"{path}=os.system"])


def make(width: int, kind: str = "relu") -> nn.Module:
    return nn.Linear(width, 1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (float("inf"), "inf"),
        ((1, (2.5, "a")), [1, [2.5, "a"]]),
        ((1, None), [1, "None"]),
        ({"a": None, "b": 1}, {"b": 1}),
        ({3, 1}, ["1", "3"]),
        (Path("a/b"), "a/b"),
        (torch.float16, "torch.float16"),
        (torch.device("cpu"), "cpu"),
        (nn.Linear, "torch.nn.modules.linear.Linear"),
        (pr.hooks.every, "purerun.hooks.every"),
        (pr.optim.SGD, "purerun.optim.SGD"),
        (pr.Module(make, width=2), {"class": f"{__name__}.make", "width": 2, "kind": "relu"}),
        (functools.partial(make, width=2), {"class": f"{__name__}.make", "width": 2, "kind": "relu"}),
        (torch.zeros(2, 3), "float32[2, 3] 9d908ecfb6b2"),
        (
            pr.data.Tensors(x=torch.zeros(2)),
            {"class": "purerun.data.Tensors", "entries": {"x": "float32[2] af5570f5a181"}},
        ),
        (object(), {"class": "builtins.object"}),
    ],
    ids=program.describe,
)
def test_each_kind_of_value_becomes_plain_data(value, expected):
    """Tables, arrays, strings and numbers, without an address or anything else that another process has differently."""
    assert expected == resolved(value)


def test_a_long_array_is_its_length_and_a_mark():
    """Data may stand in a recipe; what is read by people holds settings."""
    told = resolved(tuple(range(2000)))

    assert re.fullmatch("2000 items [0-9a-f]{12}", told)
    assert told != resolved((*range(1999), 0))


def test_data_that_changed_is_noticed():
    """Two tensors of one shape are told apart by what is in them."""
    a, b = torch.zeros(4), torch.zeros(4)
    b[3] = 1

    assert resolved(a) != resolved(b)
    assert resolved(a) == resolved(torch.zeros(4))


def test_differences_name_what_one_side_lacks():
    """None stands for a value that is not there."""
    found = differences({"a": 1, "b": [1, 2]}, {"a": 1.0, "b": [1], "c": {"d": True}})

    assert ["b.1: 2 -> none", "c.d: none -> True"] == [str(each) for each in found]


def test_true_is_another_value_than_one():
    """Python thinks otherwise."""
    assert 1 == len(differences({"a": True}, {"a": 1}))


values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1), values, max_size=4))
def test_nothing_differs_from_itself(data):
    """The comparison is reflexive, whatever is compared."""
    assert [] == differences(data, data)


@attrs.frozen
class Holder:
    """A frozen value of somebody else."""

    value: object


@given(values)
def test_any_plain_data_comes_through_toml(data):
    """What can be written is read back; infinities are written as words."""
    if isinstance(resolved(data), float | int | str | bool | list | dict):
        assert resolved(Holder(data)) == tomllib.loads(text(Holder(data)))
