"""Formats of the manifest: an older one is brought forward, one version at a time, when it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

NEWEST = 2


def brought_forward(content: Mapping[str, Any]) -> dict[str, Any]:
    """Make the fields of a manifest in the newest format from one of any format.

    Raises:
        ValueError: the format is not known here.

    >>> brought_forward({"format": 1, "digest": "..."})
    {'digest': '...', 'scores': {}, 'created': '', 'changes': []}
    >>> brought_forward({"format": 3})
    Traceback (most recent call last):
    ...
    ValueError: expected a format from 1 to 2, got 3; a newer purerun may be able to read it
    """
    fields = dict(content)
    version = fields.pop("format", None)
    if type(version) is not int or not 1 <= version <= NEWEST:
        raise ValueError(
            f"expected a format from 1 to {NEWEST}, got {version!r}; a newer purerun may be able to read it"
        )
    for step in range(version, NEWEST):
        fields = _FORWARD[step](fields)
    return fields


def _from_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Format 2 says which scores the state got, when it was made, and what was changed on the way."""
    return {**fields, "scores": {}, "created": "", "changes": []}


_FORWARD: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
