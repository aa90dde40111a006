"""The checkpoints of a run as one line in time: which there are, which are good, how far the run has come."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from purerun.checkpoint import CheckpointError, Manifest, last, load, names, path_of_name, read_manifest
from purerun.checkpoint.manifest import MANIFEST
from purerun.history.error import HistoryError
from purerun.state import State


@attrs.frozen
class Point:
    """One good checkpoint.

    Attributes:
        path: its directory.
        manifest: what it says about itself.
    """

    path: Path
    manifest: Manifest = attrs.field(repr=False)

    @property
    def iter(self) -> int:
        """The iteration that it is of."""
        return self.manifest.counters["iter"]


@attrs.frozen
class Timeline:
    """The checkpoints of one run.

    Attributes:
        run: its directory.
        points: the good ones, the first iteration first.
        damaged: iteration -> why its checkpoint cannot be believed.
    """

    run: Path
    points: tuple[Point, ...]
    damaged: Mapping[int, str] = attrs.field(factory=dict)

    @property
    def tip(self) -> Point:
        """The good checkpoint of the highest iteration; the whole history is written in it.

        Raises:
            HistoryError: none is good.
        """
        if not self.points:
            reasons = "; ".join(self.damaged.values())
            raise HistoryError(f"{self.run}: expected a checkpoint that can be believed: {reasons}")
        return self.points[-1]

    @property
    def stand(self) -> Point:
        """The checkpoint that the run would go on from: the one that `last` names, or the last good one before it."""
        pointed = last(self.run)
        if pointed is None:
            return self.tip
        limit = int(pointed.removeprefix("iter_"))
        return max((point for point in self.points if point.iter <= limit), key=_iter, default=self.tip)

    def before(self, iter: int) -> tuple[Point, State] | tuple[None, None]:
        """Read the last good checkpoint at or before an iteration, all bytes verified; (None, None) for the seed."""
        for point in reversed(self.points):
            if point.iter <= iter:
                try:
                    return point, load(point.path)
                except CheckpointError:
                    continue
        return None, None

    def after(self, iter: int) -> Point:
        """Find the first good checkpoint at or after an iteration, which tells how the run came there.

        Raises:
            HistoryError: the run has not come so far.
        """
        for point in self.points:
            if point.iter >= iter > 0:
                return point
        raise HistoryError(
            f"{self.run}: expected an iteration from 1 to {self.tip.iter}, which is how far it has come, got {iter}"
        )


def timeline(run: str | os.PathLike[str], *, believe: Callable[[Path], object] = read_manifest) -> Timeline:
    """Look at all checkpoints of a run.

    Args:
        run: its directory.
        believe: raises CheckpointError for a damaged one; `pr.load` hashes every byte,
            `read_manifest` looks at sizes only.

    Raises:
        HistoryError: it is no directory of a run.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     for iter in (2, 4):
    ...         _ = pr.save(pr.testing.counted(iter=iter), pr.checkpoint.path_of(run, iter))
    ...     line = timeline(run)
    ...     [point.iter for point in line.points], int(line.before(3)[1]["iter"]), line.after(3).iter
    ([2, 4], 2, 4)
    """
    place = Path(run)
    known = names(place)
    if not known:
        raise HistoryError(f"{place}: expected the directory of a run, found {_found(place)}")
    points, damaged = [], {}
    for name in known:
        path, iter = path_of_name(place, name), int(name.removeprefix("iter_"))
        try:
            believe(path)
            points.append(_named(Point(path, read_manifest(path)), iter))
        except CheckpointError as error:
            damaged[iter] = str(error)
    return Timeline(place, tuple(points), damaged)


def _found(place: Path) -> str:
    if (place / MANIFEST).exists():
        return "a checkpoint; give its run"
    return "one without checkpoints" if place.is_dir() else "a file" if place.exists() else "nothing"


def _iter(point: Point) -> int:
    return point.iter


def _named(point: Point, iter: int) -> Point:
    told = point.manifest.counters.get("iter")
    if told != iter:
        raise CheckpointError(f"{point.path}: its manifest is of iteration {told}; it was renamed or changed")
    return point
