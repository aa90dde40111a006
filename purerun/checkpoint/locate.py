"""Which checkpoint is meant: that of a path, and the newest of a run that can be believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import attrs

from purerun.checkpoint.error import CheckpointError, reading
from purerun.checkpoint.layout import FOLDER, folder_of, names, number, path_of_name
from purerun.checkpoint.manifest import MANIFEST
from purerun.checkpoint.place import local
from purerun.checkpoint.pointer import LAST, last, pointed
from purerun.checkpoint.publish import whole

Belief = TypeVar("Belief")


@attrs.frozen
class Found(Generic[Belief]):
    """The checkpoint to go on from.

    Attributes:
        path: its directory.
        content: what was read there, and is believed.
        rejected: one line for each newer one that cannot be believed, with the reason.
    """

    path: Path
    content: Belief
    rejected: tuple[str, ...] = ()


def find(path: str | os.PathLike[str]) -> Path:
    """Find the checkpoint that is meant by a checkpoint directory or a run directory.

    Of a run it is the one that `last` names; the one of the highest iteration when a crash
    came before there was a `last`, and also where `last` is damaged, of which a `LostPointer` warns:
    `newest` begins with the same one.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    place = local(path)
    with reading(place):
        directory = whole(place)
        if (directory / MANIFEST).exists():
            return directory
        known = names(place)
        if not known:
            raise CheckpointError(f"{place}: expected a checkpoint or the directory of a run, found {_found(place)}")
        return path_of_name(place, last(place) or known[-1])


def newest(run: str | os.PathLike[str], believe: Callable[[Path], Belief]) -> Found[Belief]:
    """Find the newest checkpoint of a run that can be believed.

    The one that `last` names comes first, then those before it, the newest first.  Those
    after it come at the end: a run that was taken back to an earlier iteration is the one
    that `last` speaks of.

    Args:
        run: the directory of a run.
        believe: reads a checkpoint, and raises CheckpointError if it is damaged; `pr.load` hashes every
            byte, `read_manifest` looks at sizes only.

    Raises:
        CheckpointError: there is none, or all are damaged; the message lists the reasons.
    """
    rejected: list[str] = []
    for name in _by_trust(run, rejected):
        path = path_of_name(run, name)
        try:
            return Found(path, believe(path), tuple(rejected))
        except CheckpointError as error:
            rejected.append(str(error))
    reasons = "".join(f"\n  {line}" for line in rejected) or " there is none"
    raise CheckpointError(f"{run}: expected a checkpoint that can be believed;{reasons}")


def _by_trust(run: str | os.PathLike[str], rejected: list[str]) -> list[str]:
    known = [*reversed(names(run))]
    try:
        named = pointed(run, LAST)
    except CheckpointError as error:
        rejected.append(str(error))
        named = None
    if named is None:
        return known
    if known and named not in known:
        rejected.append(f"{folder_of(run) / LAST}: names {named}, which is gone")
    limit = number(named)
    return [*(n for n in known if number(n) <= limit), *(n for n in known if number(n) > limit)]


def _found(place: Path) -> str:
    """Say what is there instead of a checkpoint or a run."""
    if place.is_dir():
        return f"a folder without {MANIFEST} and {FOLDER}"
    return "a file; of weights alone take pr.load_weights (--load-from)" if place.exists() else "nothing"
