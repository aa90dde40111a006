"""Changes of a recipe asked for as texts, `PATH=VALUE`: checked against names and types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from purerun.recipe.error import RecipeError, meant, said
from purerun.recipe.tree import Branch, branches, grafted
from purerun.recipe.typed import typed

Value = TypeVar("Value")
Wishes: TypeAlias = dict[str, "str | Wishes"]
"""Texts by name, nested as the paths are."""


def override(recipe: Value, settings: Iterable[str]) -> Value:
    """Make the recipe with some values changed.

    A path is names and places joined by dots: `optimizer.lr`, `model.width`, `schedule.0.end`.
    All changes happen at once, so that `epochs=None` and `iters=100` can go together; of two
    for one path the last counts.

    Args:
        recipe: any frozen value.
        settings: texts `PATH=VALUE`; the value is a Python literal or TOML, and a bare word
            where a string is wanted.

    Raises:
        RecipeError: there is no such path, or the value is not of its type or out of range.

    >>> from purerun.optim import SGD
    >>> override(SGD(lr=0.1), ["lr=0.2", "nesterov=false"]).lr
    0.2
    >>> override(SGD(lr=0.1), ["lr=abc"])
    Traceback (most recent call last):
    ...
    purerun.recipe.error.RecipeError: expected float for lr, got 'abc'
    >>> override(SGD(lr=0.1), ["momentun=0.9"])
    Traceback (most recent call last):
    ...
    purerun.recipe.error.RecipeError: SGD has no 'momentun' (in momentun=0.9); did you mean 'momentum'?
    """
    wishes: Wishes = {}
    for setting in settings:
        path, text = split(setting)
        _noted(wishes, path, text)
    return _changed(Branch(recipe), wishes, ()) if wishes else recipe


def split(setting: str) -> tuple[tuple[str, ...], str]:
    """Cut `PATH=VALUE` into the names of the path and the text of the value.

    Raises:
        RecipeError: it is not of that form.

    >>> split("optimizer.lr=0.1")
    (('optimizer', 'lr'), '0.1')
    """
    path, equals, text = setting.partition("=")
    names = tuple(name.strip() for name in path.split("."))
    if not equals or not all(names):
        raise RecipeError(f"expected PATH=VALUE such as optimizer.lr=0.1, got {setting!r}")
    return names, text.strip()


def _noted(wishes: Wishes, path: tuple[str, ...], text: str) -> None:
    for name in path[:-1]:
        below = wishes.setdefault(name, {})
        if isinstance(below, str):
            raise RecipeError(f"expected one of {'.'.join(path)}={text} and {name}={below}, got both; leave one out")
        wishes = below
    if isinstance(wishes.get(path[-1], ""), dict):
        raise RecipeError(f"expected {'.'.join(path)}={text} or a change below it, got both; leave one out")
    wishes[path[-1]] = text


def _changed(tree: Branch, wishes: Mapping[str, str | Wishes], path: tuple[str, ...]) -> Any:
    """Make a value in which everything that is wished for below it is granted."""
    below = branches(tree.value, tree.type)
    changes = {}
    for name, wish in wishes.items():
        if name not in below:
            raise _unknown(tree.value, name, wish, path, below)
        here = (*path, name)
        changes[name] = _read(wish, below[name], here) if isinstance(wish, str) else _changed(below[name], wish, here)
    try:
        return grafted(tree.value, changes)
    except RecipeError:
        raise
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{', '.join(_spelled(wishes, path))}: {said(error)}") from error


def _read(text: str, branch: Branch, path: tuple[str, ...]) -> Any:
    try:
        return typed(text, branch.type)
    except (RecursionError, MemoryError) as error:
        raise RecipeError(f"expected a value for {'.'.join(path)}, got brackets nested too deep to read") from error
    except ValueError as error:
        where = ".".join(path)
        below = branches(branch.value, branch.type)
        if below:
            told = f"expected a name below {where}, got {where}={text}; set {where}.{f', {where}.'.join(below)}"
        else:
            told = str(error).replace(", got", f" for {where}, got", 1)
        raise RecipeError(told) from error


def _unknown(
    value: Any, name: str, wish: str | Wishes, path: tuple[str, ...], below: Mapping[str, Branch]
) -> RecipeError:
    setting = next(iter(_spelled({name: wish}, path)))
    kind = type(value).__name__
    if not below:
        return RecipeError(f"{'.'.join(path) or kind} is {value!r}, which has no {name!r} (in {setting})")
    return RecipeError(f"{kind} has no {name!r} (in {setting}){meant(name, below)}")


def _spelled(wishes: Mapping[str, str | Wishes], path: tuple[str, ...]) -> Iterable[str]:
    """Write wishes as they were given."""
    for name, wish in wishes.items():
        if isinstance(wish, str):
            yield f"{'.'.join((*path, name))}={wish}"
        else:
            yield from _spelled(wish, (*path, name))
