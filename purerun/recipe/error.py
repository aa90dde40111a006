"""What can be wrong with a recipe, said in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RecipeError(ValueError):
    """A recipe, its file, or a change asked of it is not right; the message says where and what to do."""


def meant(name: str, names: Iterable[str]) -> str:
    """Say which names somebody may have meant, for the end of a message.

    >>> meant("momentun", ["lr", "momentum"]), meant("x", ["lr", "momentum"]), meant("x", [])
    ("; did you mean 'momentum'?", '; it has lr, momentum', '')
    """
    names = list(names)
    near = get_close_matches(name, names, n=3)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; it has {', '.join(names)}" if names else ""


def said(error: BaseException) -> str:
    """Take the message of an error, without what attrs adds to it for programs.

    >>> said(TypeError("'lr' must be a number", object(), 3)), said(KeyError("lr"))
    ("'lr' must be a number", "'lr'")
    """
    first = error.args[0] if error.args else ""
    return first if len(error.args) > 1 and isinstance(first, str) else str(error)
