"""What a field of a value may be: validators that say what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeGuard

import attrs

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def refuse(owner: object, name: str, expected: str, value: object) -> ValueError:
    """Make the error of a field that is not what it should be."""
    return ValueError(f"{type(owner).__name__}: `{name}` should be {expected}, but it is {value!r}")


def number(low: float, high: float = math.inf) -> Validator:
    """Make a validator: a finite number from `low` to `high`, both allowed."""
    expected = f"a number of at least {low}" if high == math.inf else f"a number from {low} to {high}"

    def check(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not is_number(value) or not low <= value <= high:
            raise refuse(owner, attribute.name, expected, value)

    return check


def above(low: float) -> Validator:
    """Make a validator: a finite number greater than `low`."""

    def check(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not is_number(value) or not value > low:
            raise refuse(owner, attribute.name, f"a number greater than {low}", value)

    return check


def between(low: float, high: float) -> Validator:
    """Make a validator: a finite number between `low` and `high`, neither allowed."""

    def check(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not is_number(value) or not low < value < high:
            raise refuse(owner, attribute.name, f"a number between {low} and {high}", value)

    return check


def whole(low: int) -> Validator:
    """Make a validator: an int of at least `low`."""

    def check(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not is_whole(value) or value < low:
            raise refuse(owner, attribute.name, f"a whole number of at least {low}", value)

    return check


def each(item: Validator, *, count: int | None = None) -> Validator:
    """Make a validator: a tuple of `count` entries (None: of one or more), `item` true of each."""
    expected = "a sequence with at least one entry" if count is None else f"a sequence of {count}"

    def check(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple) or len(value) != (count or max(len(value), 1)):
            raise refuse(owner, attribute.name, expected, value)
        for entry in value:
            item(owner, attribute, entry)

    return check


def rising(owner: object, attribute: attrs.Attribute[Any], value: tuple[int, ...]) -> None:
    """Check that each entry is at least the one before it."""
    if any(after < before for before, after in pairwise(value)):
        raise refuse(owner, attribute.name, "in rising order", value)


def one_of(*words: str) -> Validator:
    """Make a validator: one of some words."""

    def check(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in words:
            raise refuse(owner, attribute.name, " or ".join(map(repr, words)), value)

    return check


def floating(value: Any) -> Any:
    """Make a float of an int, so that 1 and 1.0 are one value with one fingerprint; anything else is a validator's.

    >>> floating(1), floating("a")
    (1.0, 'a')
    """
    return float(value) if type(value) is int else value


def several(given: Any) -> tuple[Any, ...]:
    """Make a tuple of one thing or of several; a text is one.

    >>> several("head.*"), several(["a", "b"])
    (('head.*',), ('a', 'b'))
    """
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether `value` is a finite real number (a bool is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether `value` is an int (a bool is none)."""
    return isinstance(value, int) and not isinstance(value, bool)
