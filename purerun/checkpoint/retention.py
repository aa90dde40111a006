"""Which checkpoints of a run are kept: a pure function of what is there, and the removal of the others."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from purerun.checkpoint.best import Best
from purerun.checkpoint.error import CheckpointError, SaveError
from purerun.checkpoint.layout import names, path_of_name, remove
from purerun.checkpoint.manifest import read_manifest
from purerun.checkpoint.pointer import LAST, last, point, pointers, unpoint

Scores: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Name of a checkpoint -> the scores of its state; the earliest first."""


class NotRemoved(UserWarning):
    """A checkpoint that is not kept stays, because something else is in its folder."""


def kept(scores: Scores, keep: int | None, best: Sequence[Best]) -> set[str]:
    """Choose what to keep: the newest, and what is the best of all up to any that is kept.

    Whoever goes back to a kept checkpoint, and goes on from there, finds the best one of that time:
    the run ends with the same best, interrupted or not.

    Args:
        scores: all that there are.
        keep: how many of the newest; None for all.
        best: by which scores the best are kept too.

    >>> scores = {"a": {"acc": 0.5}, "b": {"acc": 0.9}, "c": {"acc": 0.7}, "d": {}, "e": {"acc": 0.8}}
    >>> sorted(kept(scores, 2, [])), sorted(kept(scores, 2, [Best("acc")]))
    (['d', 'e'], ['b', 'd', 'e'])
    """
    order = list(scores)
    chosen = set(order if keep is None else order[-keep:])
    looked_at: set[str] = set()
    while fresh := chosen - looked_at:
        end = fresh.pop()
        looked_at.add(end)
        up_to = {name: scores[name] for name in order[: order.index(end) + 1]}
        chosen |= {name for each in best if (name := each.among(up_to)) is not None}
    return chosen


def prune(
    run: str | os.PathLike[str], keep: int | None, best: Sequence[Best] = (), scores: Scores | None = None
) -> None:
    """Remove the checkpoints of a run that are not kept; the one that `last` names stays.

    A pointer to a best checkpoint that there is no longer is removed, too.  A checkpoint in whose folder somebody
    has put something else stays, and a `NotRemoved` says so.

    Args:
        run: its directory.
        keep: as in `kept`.
        best: as in `kept`; the pointers to the best are written anew.
        scores: what is known of the scores, for checkpoints whose manifests need not be read.

    Raises:
        SaveError: the folder cannot be written.

    >>> import tempfile, purerun as pr
    >>> with tempfile.TemporaryDirectory() as run:
    ...     for iter in (1, 2, 3, 4):
    ...         _ = pr.save(pr.testing.counted(iter=iter), pr.checkpoint.path_of(run, iter))
    ...     pr.checkpoint.point(run, "iter_00000001")
    ...     prune(run, 2)
    ...     names(run)
    ('iter_00000001', 'iter_00000003', 'iter_00000004')
    """
    known = scores or {}
    there = {name: known.get(name) or scores_of(run, name) if best else {} for name in names(run)}
    stay = kept(there, keep, best) | {last(run)}
    _point_to_best(run, {each.pointer: each.among(there) for each in best}, stay)
    for name in there:
        if name not in stay:
            _remove(run, name)


def _point_to_best(run: str | os.PathLike[str], best: Mapping[str, str | None], stay: Collection[str | None]) -> None:
    """Write the pointers to the best, and remove those to what does not stay."""
    for pointer, name in {**pointers(run), **best}.items():
        if pointer in best and name is not None:
            point(run, name, pointer)
        elif pointer != LAST and name not in stay:
            unpoint(run, pointer)


def _remove(run: str | os.PathLike[str], name: str) -> None:
    try:
        remove(run, name)
    except SaveError:
        raise
    except CheckpointError as error:
        warnings.warn(NotRemoved(str(error)), stacklevel=3)


def scores_of(run: str | os.PathLike[str], name: str) -> Mapping[str, Any]:
    """Read the scores of a checkpoint; none of a damaged one."""
    try:
        return read_manifest(path_of_name(run, name)).scores
    except CheckpointError:
        return {}
