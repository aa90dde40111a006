"""Values that options take: whole numbers and paths, and nothing that would have to be guessed at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter, Token, validators

_WHOLE = re.compile(r"-?[0-9]{1,18}")  # as many as a counter of a state holds


def whole(least: int | None = None) -> Parameter:
    """Take a whole number, and not 1.5 for 2.

    Args:
        least: none that is less; None for any.
    """
    return Parameter(converter=_whole, validator=validators.Number(gte=least))


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    (token,) = tokens
    if not _WHOLE.fullmatch(token.value):
        raise ValueError(f'expected a whole number, got "{token.value}"')
    return int(token.value)


def _path(_: Any, tokens: Sequence[Token]) -> Path:
    (token,) = tokens
    # Of an empty text a Path makes the current folder: of a variable of a shell that was never set, say.
    if not token.value or "\0" in token.value:
        raise ValueError(f"expected a path, got {token.value!r}")
    return Path(token.value)


Place: TypeAlias = Annotated[Path, Parameter(converter=_path)]
"""A path of this machine."""

PlaceIfAny: TypeAlias = Annotated[Path | None, Parameter(converter=_path)]
