"""Commands that compare: `diff` of two checkpoints, `bisect` of two runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from purerun.cli.replayed import RecipeFile, opened
from purerun.cli.values import Place

if TYPE_CHECKING:
    from purerun.history import Parting

_SHOWN = 12  # leaves of a parting; `diff` shows all


def diff(a: str, b: str, /) -> None:
    """Compare two checkpoints leaf by leaf.

    Also their counters, their recipes and the programs that made them.

    Args:
        a: A checkpoint, or a run by its last one (a path or a URL).
        b: The other.
    """
    from purerun.history import compare

    found = compare(a, b)
    sys.stdout.write("the same: every bit of both states\n" if found.same else "not the same\n")
    _section("counters", found.counters)
    _section("leaves", found.leaves)
    _section("recipes", found.recipe)
    _section("programs", found.program)


def bisect(a: Place, b: Place, /, *, recipe: RecipeFile = None) -> None:
    """Find the first iteration, and leaf, in which two runs differ that should agree.

    Both are computed again from the last checkpoint in which they agree, or from their seeds.

    Args:
        a: The directory of a run.
        b: That of the other.
        recipe: The recipe file of both; those of the runs' names unless given.
    """
    from purerun.history import bisect as bisected

    (_, mine), (_, theirs) = opened(a, recipe), opened(b, recipe)
    found = bisected(a, b, mine, theirs)
    sys.stdout.write(_told(found, a, b) + "\n")
    _section("leaves", found.leaves[:_SHOWN])
    if len(found.leaves) > _SHOWN:
        sys.stdout.write(f"  and {len(found.leaves) - _SHOWN} more\n")


def _told(found: Parting, a: Path, b: Path) -> str:
    begin = f"iteration {found.since}" if found.since else "the seed"
    if found.iter is None:
        return f"{a} and {b} agree up to iteration {found.until}, as far as both go"
    if found.guilty is None:
        return f"{a} and {b} differ from iteration {found.iter} on, first in {found.leaves[0].path}"
    first = found.leaves[0].path if found.leaves else "nothing that is saved"
    return (
        f"the recipes of both lead to the same states, but the checkpoint of {found.guilty} at iteration {found.iter} "
        f"does not follow from its own between {begin} and {found.iter}: it differs first in {first}"
    )


def _section(title: str, lines: Iterable[object]) -> None:
    told = [f"  {line}\n" for line in lines]
    if told:
        sys.stdout.write(f"{title}\n{''.join(told)}")
