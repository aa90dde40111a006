"""Calls as data: what arguments a class or function takes, of which types, and whether given ones fit."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from purerun.recipe.error import RecipeError, meant

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Argument(NamedTuple):
    """One argument of a call: its value, and the type that another value must have."""

    value: Any
    type: Any


def vet(target: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Check that a call with these keyword arguments fits the target's signature.

    Raises:
        RecipeError: an argument is unknown, or one is missing.

    >>> def net(width: int, dropout: float = 0.1): ...
    >>> vet(net, {"widht": 8})
    Traceback (most recent call last):
    ...
    purerun.recipe.error.RecipeError: net takes no argument 'widht'; did you mean 'width'?
    """
    taken = _parameters(target)
    names = [name for name, parameter in taken.items() if parameter.kind in _NAMED]
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        for name in given:
            if name not in names:
                raise RecipeError(f"{named(target)} takes no argument {name!r}{meant(name, names)}")
    missing = [name for name in names if taken[name].default is inspect.Parameter.empty and name not in given]
    if missing:
        raise RecipeError(f"{named(target)} needs {', '.join(missing)}; give them as keyword arguments")


def arguments(target: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Argument]:
    """List what a target is called with, by name: the given arguments, and the defaults of the others.

    >>> def net(width: int, dropout: float = 0.1): ...
    >>> arguments(net, {"width": 8})
    {'width': Argument(value=8, type=<class 'int'>), 'dropout': Argument(value=0.1, type=<class 'float'>)}
    """
    parameters, hints = _parameters(target), _hints(target)
    values = {
        name: given.get(name, parameter.default)
        for name, parameter in parameters.items()
        if parameter.kind in _NAMED and (name in given or parameter.default is not inspect.Parameter.empty)
    }
    values.update({name: value for name, value in given.items() if name not in values})
    return {name: Argument(value, hints.get(name, Any)) for name, value in values.items()}


def named(target: Callable[..., Any]) -> str:
    """Name a class or function as a person would."""
    return str(getattr(target, "__qualname__", type(target).__qualname__))


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        # Some classes written in C do not tell; then the call itself must say what is wrong.
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    except (TypeError, NameError):
        return {}
