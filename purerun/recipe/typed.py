"""Values from texts, as types ask for them: nothing is coerced but a whole number to a float."""

from __future__ import annotations

import ast
import tomllib
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import cattrs


def typed(text: str, wanted: Any) -> Any:
    """Read a text as a value of a type.

    The text is a Python literal, or TOML, or, where a string is wanted, itself.

    Raises:
        ValueError: it is no such value.

    >>> typed("1", float), typed("1", str), typed("[1, 2]", tuple[int, ...]), typed("None", int | None)
    (1.0, '1', (1, 2), None)
    >>> typed("true", float)
    Traceback (most recent call last):
    ...
    ValueError: expected float, got 'true'
    """
    value = _read(text)
    for candidate in (value,) if isinstance(value, str) else (value, text):
        try:
            return _converter().structure(candidate, wanted)
        # A converter fails in as many ways as there are types; all of them mean "not this one".
        except Exception:  # noqa: BLE001
            continue
    raise ValueError(f"expected {spelled(wanted)}, got {text!r}")


def spelled(wanted: Any) -> str:
    """Say a type as one writes it.

    >>> spelled(float | None), spelled(typing.Literal["epoch", "iter"]), spelled(tuple[int, ...])
    ('float | None', "'epoch' | 'iter'", 'tuple[int, ...]')
    """
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if _is_union(wanted):
        return " | ".join(map(spelled, inner))
    if origin is typing.Literal:
        return " | ".join(map(repr, inner))
    if wanted in (types.NoneType, Ellipsis):
        return "None" if wanted is types.NoneType else "..."
    if inner and not isinstance(inner[0], list):
        return f"{getattr(origin, '__name__', origin)}[{', '.join(map(spelled, inner))}]"
    return str(getattr(wanted, "__name__", wanted))


def _read(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if list(table) == ["value"] else text


def _converter() -> cattrs.Converter:
    """Make a converter that takes values as they are or not at all."""
    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True, detailed_validation=False)
    for kind in (bool, int, str, types.NoneType):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook_factory(_is_sequence, _from_sequences_only)
    converter.register_structure_hook_factory(_is_union, _one_of)
    return converter


def _exactly(kind: type) -> Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {value!r}")
        return value

    return check


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected float, got {value!r}")
    return float(value)


def _is_union(wanted: Any) -> bool:
    return typing.get_origin(wanted) in (typing.Union, types.UnionType)


def _one_of(wanted: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    members = typing.get_args(wanted)

    def check(value: Any, _: Any) -> Any:
        # Its own type first, so that 1 stays whole where both int and float are taken.
        for member in sorted(members, key=lambda member: member is not type(value)):
            try:
                return converter.structure(value, member)
            except Exception:  # noqa: BLE001
                continue
        raise TypeError(f"expected {spelled(wanted)}, got {value!r}")

    return check


def _is_sequence(wanted: Any) -> bool:
    origin = typing.get_origin(wanted) or wanted
    return isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str


def _from_sequences_only(wanted: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    inner, whole = typing.get_args(wanted), typing.get_origin(wanted) or wanted

    def check(value: Any, _: Any) -> Any:
        # A string is a sequence too, and never what is meant.
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a sequence, got {value!r}")
        endless = not inner or inner[-1] is Ellipsis or whole is not tuple
        kinds = (inner[0] if inner else Any,) * len(value) if endless else inner
        made = [converter.structure(item, kind) for item, kind in zip(value, kinds, strict=True)]
        return made if whole is list else tuple(made)

    return check
