"""Options that say which weights a run begins with, and what is told when they do not fit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from purerun.cli.exits import Mistake

if TYPE_CHECKING:
    from purerun.recipe import Weights

Strict = Annotated[bool, Parameter(negative="--no-strict")]
Renames = Annotated[list[str] | None, Parameter(negative="")]


def chosen(load_from: str | None, entry: str, renames: Sequence[str], *, strict: bool) -> Weights | None:
    """Say which weights a run begins with; None for fresh ones."""
    if load_from is None:
        if entry or renames or not strict:
            raise Mistake("expected --load-from PATH with --weights, --rename and --no-strict; say where from")
        return None
    from purerun.recipe import Weights

    return Weights(load_from, strict=strict, rename=dict(map(pair, renames)), entry=entry)


def pair(rename: str) -> tuple[str, str]:
    """Split OLD=NEW; names have no `=`, but a regular expression may.

    >>> pair("^module.="), pair("a(?=b)=c")
    (('^module.', ''), ('a(?=b)', 'c'))
    """
    old, equals, new = rename.rpartition("=")
    if not equals or not old:
        raise Mistake(f"expected OLD=NEW such as '^backbone\\.=', got --rename {rename!r}")
    return old, new


@contextmanager
def tabled() -> Iterator[None]:
    """Show in a table which weights do not fit, if that is what ends the block."""
    from purerun.checkpoint import WeightsDiffer

    try:
        yield
    except WeightsDiffer as error:
        sys.stderr.write("\n".join(error.match.table()) + "\n")
        raise


@contextmanager
def here(resume: str | None) -> Iterator[str | Path | None]:
    """Have the checkpoint of a `--resume` on this machine; words that are no URL stay as they are."""
    from purerun.checkpoint import fetched, is_url

    if resume is None or not is_url(resume):
        yield resume
        return
    with fetched(resume) as place:
        yield place
