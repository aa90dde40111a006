"""A recipe as a tree: what lies below a value, of which types, and the value with some of it changed."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import attrs

from purerun.recipe.call import arguments
from purerun.recipe.error import RecipeError
from purerun.recipe.module import Module


class Branch(NamedTuple):
    """What lies below a name: a value, and the type that another value there must have."""

    value: Any
    type: Any = Any


def branches(value: Any, declared: Any = Any) -> dict[str, Branch]:
    """List what lies below a value, by name; nothing if the value is a leaf.

    Fields of a frozen value, arguments of a `Module` or a partial function, keys of a mapping,
    places of a tuple.

    Args:
        value: any part of a recipe.
        declared: its own type, which says the types inside a mapping or a tuple.

    >>> from purerun.optim import SGD
    >>> branches(SGD(lr=0.1))["lr"]
    Branch(value=0.1, type=<class 'float'>)
    >>> branches((0.9, 0.999), tuple[float, float])["1"]
    Branch(value=0.999, type=<class 'float'>)
    >>> branches(0.1)
    {}
    """
    return {name: Branch(below, _known(kind, below)) for name, (below, kind) in _below(value, declared).items()}


def grafted(value: Any, changes: Mapping[str, Any]) -> Any:
    """Make the value with some of what lies below it changed; each name is one of `branches`.

    >>> from purerun.optim import SGD
    >>> grafted(SGD(lr=0.1), {"lr": 0.2}).lr, grafted((1, 2), {"0": 5})
    (0.2, (5, 2))
    """
    match value:
        case Module():
            return value.replace(**changes)
        case functools.partial():
            return functools.partial(value.func, **{**value.keywords, **changes})
        case Mapping():
            return {key: changes.get(str(key), below) for key, below in value.items()}
        case tuple() | list():
            return type(value)(changes.get(str(place), below) for place, below in enumerate(value))
    return attrs.evolve(value, **changes)


def _below(value: Any, declared: Any) -> dict[str, tuple[Any, Any]]:
    match value:
        case Module():
            return dict(value.arguments)
        case functools.partial(args=()):
            return dict(arguments(value.func, value.keywords))
        case Mapping():
            inner = typing.get_args(declared)[-1:] or (Any,)
            return {str(key): (below, inner[0]) for key, below in value.items()}
        case tuple() | list():
            types = _places(declared, len(value))
            return {str(place): pair for place, pair in enumerate(zip(value, types, strict=True))}
    if not _is_plain(type(value)):
        return {}
    types = _types(type(value))
    return {str(field.alias): (getattr(value, field.name), types[field.name]) for field in _fields(type(value))}


def _known(declared: Any, value: Any) -> Any:
    """Say what may stand in the place of a value: where nothing is declared, one of its own kind."""
    if declared is not Any or not isinstance(value, bool | int | float | str):
        return declared
    return type(value) if isinstance(value, bool | str) else int | float


def _is_plain(cls: type) -> bool:
    """Say whether a class is an attrs one that is made from its fields, by name."""
    if not attrs.has(cls):
        return False
    taken = inspect.signature(cls).parameters
    return all(field.alias in taken for field in _fields(cls))


def _fields(cls: type) -> list[attrs.Attribute[Any]]:
    return [field for field in attrs.fields(cls) if field.init]


def _types(cls: type) -> dict[str, Any]:
    """List what each field takes: its type, or what its converter takes."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise RecipeError(
            f"the types of {cls.__name__} cannot be read ({error}); import them outside of `if TYPE_CHECKING`"
        ) from error
    return {field.name: _taken(field, hints.get(field.name, Any)) for field in _fields(cls)}


def _taken(field: attrs.Attribute[Any], declared: Any) -> Any:
    if not inspect.isfunction(field.converter):
        return declared
    hints = typing.get_type_hints(field.converter)
    hints.pop("return", None)
    taken = next(iter(hints.values()), Any)
    return declared if taken is Any else taken


def _places(declared: Any, length: int) -> tuple[Any, ...]:
    types = typing.get_args(declared)
    if len(types) == length and Ellipsis not in types:
        return types
    return (types[0] if types and types[-1] is Ellipsis else Any,) * length
