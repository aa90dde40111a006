"""Changes asked for as texts: typed, checked by name, all at once."""

from __future__ import annotations

import functools
from typing import Literal

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun.recipe import RecipeError, override
from purerun.recipe.typed import typed


@attrs.frozen
class Inner:
    """Something with every kind of field that a text can set."""

    rate: float = 0.5
    count: int = 3
    flag: bool = False
    name: str = "a"
    mode: Literal["epoch", "iter"] = "epoch"
    maybe: float | None = None
    either: int | str = 1
    pair: tuple[float, float] = (0.9, 0.999)
    many: tuple[int, ...] = (1, 2)
    several: str | tuple[str, ...] = "*"


@attrs.frozen
class Outer:
    """A tree of three floors."""

    inner: Inner = Inner()
    parts: tuple[Inner, ...] = (Inner(), Inner(rate=0.1))
    named: dict[str, Inner] = attrs.field(factory=lambda: {"first": Inner()})
    numbers: dict[str, float] = attrs.field(factory=lambda: {"a": 1.0})
    positive: int = attrs.field(default=1, validator=attrs.validators.gt(0))
    when: pr.hooks.When = attrs.field(default="1 epoch", converter=pr.hooks.every)


def net(width: int, dropout: float = 0.1, kind="relu") -> nn.Module:
    return nn.Linear(width, 1)


def loss(model, batch, smoothing: float = 0.0):
    return model(batch).mean() * smoothing


@pytest.mark.parametrize(
    ("setting", "path", "expected"),
    [
        ("inner.rate=0.25", ("inner", "rate"), 0.25),
        ("inner.rate=1", ("inner", "rate"), 1.0),
        ("inner.rate=1e-3", ("inner", "rate"), 0.001),
        ("inner.rate=inf", ("inner", "rate"), float("inf")),
        ("inner.count=1_000", ("inner", "count"), 1000),
        ("inner.flag=true", ("inner", "flag"), True),
        ("inner.flag=True", ("inner", "flag"), True),
        ("inner.name=b", ("inner", "name"), "b"),
        ("inner.name='b c'", ("inner", "name"), "b c"),
        ("inner.name=7", ("inner", "name"), "7"),
        ("inner.name=a=b", ("inner", "name"), "a=b"),
        ("inner.name=None", ("inner", "name"), "None"),
        ("inner.name=", ("inner", "name"), ""),
        ("inner.mode=iter", ("inner", "mode"), "iter"),
        ("inner.maybe=None", ("inner", "maybe"), None),
        ("inner.maybe=2", ("inner", "maybe"), 2.0),
        ("inner.either=5", ("inner", "either"), 5),
        ("inner.either=five", ("inner", "either"), "five"),
        ("inner.either=true", ("inner", "either"), "true"),
        ("inner.pair=[0.8, 1]", ("inner", "pair"), (0.8, 1.0)),
        ("inner.pair=(0.8, 0.9)", ("inner", "pair"), (0.8, 0.9)),
        ("inner.pair.1=0.99", ("inner", "pair"), (0.9, 0.99)),
        ("inner.many=[]", ("inner", "many"), ()),
        ("inner.several=head.*", ("inner", "several"), "head.*"),
        ("inner.several=['a', 'b']", ("inner", "several"), ("a", "b")),
        ("named.first.rate=2", ("named",), {"first": Inner(rate=2.0)}),
        ("numbers.a=2", ("numbers",), {"a": 2.0}),
        ("parts.1.count=9", ("parts",), (Inner(), Inner(rate=0.1, count=9))),
        ("when=3 iters", ("when",), pr.hooks.Every(3, "iter")),
        ("when=20", ("when",), pr.hooks.Every(20, "iter")),
        ("when.count=2", ("when",), pr.hooks.Every(2, "epoch")),
    ],
)
def test_a_text_is_read_as_the_type_of_its_place(setting, path, expected):
    """Whole numbers become floats where floats are wanted, and nothing else is coerced."""
    found = override(Outer(), [setting])
    for name in path:
        found = getattr(found, name)

    assert expected == found
    assert type(expected) is type(found)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("inner.rate=abc", "expected float for inner.rate, got 'abc'"),
        ("inner.rate=true", "expected float for inner.rate, got 'true'"),
        ("inner.count=1.0", "expected int for inner.count, got '1.0'"),
        ("inner.count=True", "expected int for inner.count, got 'True'"),
        ("inner.flag=1", "expected bool for inner.flag, got '1'"),
        ("inner.mode=epochs", "expected 'epoch' | 'iter' for inner.mode, got 'epochs'"),
        ("inner.maybe=x", "expected float | None for inner.maybe, got 'x'"),
        (
            "inner.many=12",
            "expected a name below inner.many, got inner.many=12; set inner.many.0, inner.many.1",
        ),
        ("inner.rat=1", "Inner has no 'rat' (in inner.rat=1); did you mean 'rate'?"),
        ("iner.rate=1", "Outer has no 'iner' (in iner.rate=1); did you mean 'inner'?"),
        ("zzz=1", "Outer has no 'zzz' (in zzz=1); it has inner, parts, named, numbers, positive, when"),
        ("parts.2.rate=1", "tuple has no '2' (in parts.2.rate=1); it has 0, 1"),
        ("named.second.rate=1", "dict has no 'second' (in named.second.rate=1); it has first"),
        ("inner.rate.x=1", "inner.rate is 0.5, which has no 'x' (in inner.rate.x=1)"),
        ("positive=0", "positive=0: 'positive' must be > 0: 0"),
        ("when=sometimes", 'when=sometimes: expected something like "1 epoch"'),
        ("inner", "expected PATH=VALUE such as optimizer.lr=0.1, got 'inner'"),
        ("=1", "expected PATH=VALUE such as optimizer.lr=0.1, got '=1'"),
        ("inner..rate=1", "expected PATH=VALUE such as optimizer.lr=0.1, got 'inner..rate=1'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting, message):
    """The message says what was expected, what came and where."""
    with pytest.raises(RecipeError) as caught:
        override(Outer(), [setting])

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_part_cannot_be_replaced_by_a_text():
    """A part is changed through what lies below it, which the message lists."""
    with pytest.raises(RecipeError, match=r"expected a name below inner, got inner=3; set inner\.rate, inner\.count, "):
        override(Outer(), ["inner=3"])


@pytest.mark.parametrize("settings", [("inner.pair=[1, 2]", "inner.pair.0=3"), ("inner.pair.0=3", "inner.pair=[1, 2]")])
def test_a_value_and_what_lies_below_it_cannot_both_be_set(settings):
    """Which of the two were to win would depend on their order."""
    with pytest.raises(RecipeError, match="got both; leave one out"):
        override(Outer(), settings)


def test_of_two_settings_of_one_path_the_last_counts():
    """So a script can put its own settings before those of its user."""
    assert 2.0 == override(Outer(), ["inner.rate=1", "inner.rate=2"]).inner.rate


def test_what_is_not_named_is_the_same_object():
    """Only the values along a path are made anew, and the given recipe stays as it is."""
    outer = Outer()
    changed = override(outer, ["inner.rate=1"])

    assert changed.parts is outer.parts
    assert 0.5 == outer.inner.rate


def test_no_setting_gives_the_recipe_itself():
    """There is nothing to make anew."""
    outer = Outer()

    assert override(outer, []) is outer


def test_settings_that_need_each_other_are_made_at_once():
    """A recipe with both or neither of epochs and iters would be refused between two single changes."""
    recipe = pr.Recipe(
        model=pr.Module(nn.Linear, in_features=1, out_features=1),
        loss=loss,
        train=pr.Loader(pr.data.Tensors(torch.zeros(4, 1)), batch_size=2),
        optimizer=pr.optim.SGD(),
        epochs=1,
    )
    changed = override(recipe, ["epochs=None", "iters=7"])

    assert (None, 7) == (changed.epochs, changed.iters)


@pytest.mark.parametrize(
    ("setting", "name", "expected"),
    [
        ("model.width=64", "width", 64),
        ("model.dropout=0", "dropout", 0.0),  # a default becomes a given argument
        ("model.kind=gelu", "kind", "gelu"),  # without an annotation, the default says the type
    ],
)
def test_arguments_of_a_module_have_the_types_of_its_signature(setting, name, expected):
    """`model.width` is the argument `width` of what the recipe calls."""

    @attrs.frozen
    class Holder:
        model: pr.Module = pr.Module(net, width=8)

    changed = override(Holder(), [setting]).model

    assert expected == changed.arguments[name].value
    assert expected == dict(changed.given)[name]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.widht=64", "Module has no 'widht' (in model.widht=64); did you mean 'width'?"),
        ("model.width=wide", "expected int for model.width, got 'wide'"),
    ],
)
def test_wrong_arguments_of_a_module_are_refused(setting, message):
    """As fields of values are."""

    @attrs.frozen
    class Holder:
        model: pr.Module = pr.Module(net, width=8)

    with pytest.raises(RecipeError) as caught:
        override(Holder(), [setting])

    assert message == str(caught.value)


def test_arguments_of_a_partial_function_can_be_set():
    """A loss with an option is `functools.partial(loss, smoothing=0.1)`."""

    @attrs.frozen
    class Holder:
        loss: functools.partial = functools.partial(loss, smoothing=0.1)

    changed = override(Holder(), ["loss.smoothing=0.2"]).loss

    assert (loss, {"smoothing": 0.2}) == (changed.func, changed.keywords)


def test_an_optimizer_of_torch_has_its_options_below():
    """Numbers without a declared type may be replaced by numbers."""
    optimizer = pr.optim.Torch(torch.optim.NAdam, lr=1, betas=(0.9, 0.99))
    changed = override(optimizer, ["options.lr=0.5", "options.betas.1=0.999"])

    assert pr.optim.Torch(torch.optim.NAdam, lr=0.5, betas=(0.9, 0.999)) == changed
    with pytest.raises(RecipeError, match=r"expected int \| float for options.lr, got 'abc'"):
        override(optimizer, ["options.lr=abc"])


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.floats(allow_nan=False))
def test_every_float_is_read_back_as_itself(value):
    """`repr` of a float is a value of a setting."""
    assert value == override(Inner(), [f"rate={value!r}"]).rate


@given(st.integers())
def test_every_whole_number_is_read_back_as_itself(value):
    """However large it is."""
    assert value == override(Inner(), [f"count={value}"]).count


@given(st.text())
def test_every_string_is_read_back_from_its_literal(value):
    """Quoted, a string is taken as Python reads it."""
    assert value == override(Inner(), [f"name={value!r}"]).name


@given(values, st.sampled_from([float, int, bool, str, float | None, int | str, tuple[int, ...], Literal["a", 1]]))
def test_a_text_is_of_the_wanted_type_or_refused(value, wanted):
    """No text is turned into a value of another type, and no error but one escapes."""
    inside = {
        float: lambda v: type(v) is float,
        int: lambda v: type(v) is int,
        bool: lambda v: type(v) is bool,
        str: lambda v: type(v) is str,
        float | None: lambda v: v is None or type(v) is float,
        int | str: lambda v: type(v) in (int, str),
        tuple[int, ...]: lambda v: type(v) is tuple and all(type(each) is int for each in v),
        Literal["a", 1]: lambda v: v in ("a", 1),
    }[wanted]
    try:
        found = typed(str(value), wanted)
    except ValueError:
        return
    assert inside(found)


@given(st.text(), st.text())
def test_any_setting_makes_a_value_or_a_recipe_error(path, text):
    """Whatever is typed, the user gets an answer about the recipe."""
    try:
        changed = override(Inner(), [f"{path}={text}"])
    except RecipeError:
        return
    assert isinstance(changed, Inner)


def test_brackets_without_end_are_refused():
    """In one line, however deep."""
    with pytest.raises(RecipeError, match="expected a value for lr, got brackets nested too deep"):
        override(pr.optim.SGD(lr=0.1), ["lr=" + "[" * 5000 + "]" * 5000])
