"""What the fields of a recipe must be, with messages that say how to write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def a(kind: type, how: str) -> Validator:
    """Check for a value of a kind; `how` is an example of one."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"expected {field.name} such as {how}, got {_short(value)}")

    return check


def each(kind: type, how: str) -> Validator:
    """Check every member of a tuple, or every value of a mapping."""

    def check(_: Any, field: attrs.Attribute[Any], value: Iterable[Any]) -> None:
        for member in value.values() if isinstance(value, Mapping) else value:
            if not isinstance(member, kind):
                raise TypeError(f"expected {field.name} of values such as {how}, got {_short(member)} among them")

    return check


def function(what: str) -> Validator:
    """Check for a function of something."""

    def check(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if not callable(value):
            raise TypeError(f"expected {field.name} to be a function {what}, got {_short(value)}")

    return check


def device(_: Any, __: Any, name: str) -> None:
    """Check for the name of a device; whether it is there is another question."""
    try:
        torch.device(name if name != "auto" else "cpu")
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"expected a device such as 'cpu', 'cuda:0' or 'auto', got {name!r}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else type(value).__name__
