"""Two checkpoints side by side: counters, leaves, recipes and programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs

from purerun import program
from purerun.checkpoint import Manifest, fetched, find, load, read_manifest
from purerun.identity import LeafDiff, diff
from purerun.recipe import Difference, differences

_ASIDE = ("epoch", "iter", "cursor", "seed", "fingerprint")


@attrs.frozen
class Comparison:
    """In what two checkpoints differ.

    Attributes:
        counters: those with other values, in the first and in the second.
        leaves: the other leaves with other bits.
        recipe: values of the recipe.
        program: lines of the programs that made them, marked with - and +.
        same: whether every bit of the two states is the same.
    """

    counters: tuple[Difference, ...]
    leaves: tuple[LeafDiff, ...]
    recipe: tuple[Difference, ...]
    program: tuple[str, ...]
    same: bool


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Comparison:
    """Compare two checkpoints; all bytes of both are read and verified.

    Args:
        a: a checkpoint, or a run by its last one; or the URL of one.
        b: the other.

    Raises:
        CheckpointError: one of them cannot be believed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, iter in (("a", 3), ("b", 4)):
    ...         _ = pr.save(pr.testing.counted(iter=iter), f"{folder}/{name}")
    ...     found = compare(f"{folder}/a", f"{folder}/b")
    >>> [str(change) for change in found.counters], found.leaves, found.same
    (['iter: 3 -> 4'], (), False)
    """
    with fetched(a) as one, fetched(b) as other:
        return _compared(find(one), find(other))


def _compared(one: Path, other: Path) -> Comparison:
    old, new = read_manifest(one), read_manifest(other)
    leaves = diff(load(one), load(other))
    return Comparison(
        counters=tuple(differences(old.counters, new.counters)),
        leaves=tuple(leaf for leaf in leaves if leaf.path not in _ASIDE),
        recipe=tuple(differences(_table(old.recipe), _table(new.recipe))),
        program=tuple(_programs(old, new)),
        same=old.digest == new.digest,
    )


def _table(recipe: Any) -> dict[str, Any]:
    return recipe if isinstance(recipe, dict) else {}


def _programs(old: Manifest, new: Manifest) -> list[str]:
    if old.fingerprint == new.fingerprint:
        return []
    if old.program is None or new.program is None:
        return ["the text of one of them is not known"]
    return program.difference(program.fingerprint(old.program), new.program).splitlines()
