"""An audit of a run: recompute it from checkpoint to checkpoint, compare, and find out what is not right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from purerun.checkpoint import load
from purerun.history.claims import Ancestors, false
from purerun.history.error import Gone
from purerun.history.replay import final, replay
from purerun.history.stretches import stretches
from purerun.history.timeline import Point, Timeline, timeline
from purerun.identity import UNHASHED, diff, digest
from purerun.random import Key
from purerun.recipe import Recipe, RecipeError
from purerun.state import State, StateError
from purerun.step import NonFiniteLoss


@attrs.frozen
class Finding:
    """What came of recomputing the way to one checkpoint.

    Attributes:
        until: the iteration of the checkpoint.
        since: the iteration that was begun at; 0 is the seed, None when the checkpoint cannot be read.
        leaf: the first leaf that is another in the checkpoint, and how.
        why: what follows from that, what the manifest says falsely, or why nothing could be recomputed.
        checked: whether it could be: what the run began with may be gone.
    """

    until: int
    since: int | None
    leaf: str = ""
    why: str = ""
    checked: bool = True

    @property
    def agrees(self) -> bool:
        """Whether the checkpoint is, bit for bit, what was computed, and its manifest tells the truth."""
        return self.checked and not (self.leaf or self.why)


def verify(
    run: str | Path, recipe: Recipe, *, samples: int | None = None, seed: int | None = None
) -> Iterator[Finding]:
    """Recompute a run from checkpoint to checkpoint, the first one from its seed.

    What manifests tell beside the states, parents and scores, is compared too.

    Args:
        run: its directory.
        recipe: of its recipe file; what the run had set otherwise is set again.
        samples: recompute so many segments only, chosen by chance.
        seed: of that chance; the run's own unless given.

    Raises:
        HistoryError: it is no directory of a run, or another recipe made it.
        RecipeError: another program made it.

    >>> import tempfile
    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=2,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.recipe.train(recipe, folder)
    ...     [(finding.since, finding.until, finding.agrees) for finding in verify(folder, recipe)]
    [(0, 2, True), (2, 4, True)]
    """
    line = timeline(run, believe=load)
    yield from (Finding(iter, None, why=f"damaged: {why}") for iter, why in line.damaged.items())
    points = [None, *line.points]
    if samples is None:
        yield from _walk(recipe, points, 0, len(points))
        return
    for place in _chosen(line, samples, seed):
        yield from _looked_at(recipe, points, place)


def _chosen(line: Timeline, samples: int, seed: int | None) -> list[int]:
    """Choose segments by their place."""
    key = Key.of(line.tip.manifest.counters["seed"] if seed is None else seed, "verify")
    places = sorted(range(len(line.points)), key=lambda place: key.fold_in(place).value)
    return sorted(places[:samples])


def _looked_at(recipe: Recipe, points: Sequence[Point | None], place: int) -> Iterator[Finding]:
    """Recompute one segment; if it does not agree, those around it too: what it began with may be wrong itself."""
    alone = list(_walk(recipe, points, place, place + 2))
    if all(finding.agrees or not finding.checked for finding in alone):
        yield from alone
    else:
        yield from _walk(recipe, points, max(0, place - 1), place + 3)


def _walk(recipe: Recipe, points: Sequence[Point | None], start: int, stop: int) -> Iterator[Finding]:
    """Recompute some of the points from the first of them on, past checkpoints that do not agree.

    Such a one is judged by what comes after it: if that follows from the recomputed state, the
    checkpoint was altered; if it follows from the checkpoint, the run took another way before it.
    """
    since, *others = points[start:stop]
    state = None if since is None else load(since.path)
    ancestors = Ancestors(point.manifest.digest for point in points[: start + 1] if point)
    doubted: list[Finding] = []
    for point in filter(None, others):
        mine = _recomputed(recipe, since, state, point, ancestors)
        if isinstance(mine, Gone):
            yield Finding(point.iter, _iter(since), why=str(mine), checked=False)
            mine = load(point.path)
        elif _is(mine, point):
            yield from (
                _judged(each, f"only this checkpoint was altered: from the recomputed state, {_name(point)} follows")
                for each in doubted
            )
            yield _believed(recipe, since, point, ancestors)
            doubted = []
        elif doubted and since is not None and _follows(recipe, since, point):
            yield from map(_left_open, doubted[:-1])
            yield _judged(
                doubted[-1], f"the run itself took another way there: from the checkpoint, {_name(point)} follows"
            )
            ancestors.known.add(since.manifest.digest)
            yield _believed(recipe, since, point, ancestors)
            doubted, mine = [], load(point.path)
        else:
            doubted.append(_doubt(since, point, mine))
        since, state = point, mine if isinstance(mine, State) else load(point.path)
        ancestors.known.add(digest(state) if doubted else point.manifest.digest)
    yield from map(_left_open, doubted)


def _recomputed(
    recipe: Recipe, since: Point | None, state: State | None, point: Point, ancestors: Ancestors
) -> State | Gone | str:
    """Compute the state of a point from an earlier one; or say why that is not possible."""
    try:
        states = replay(recipe, stretches(since, point), state, ends=True)
        return final(ancestors.along(states, point.manifest.parent)).hold()
    except RecipeError:
        raise
    except Gone as error:
        return error
    # Also what the code of a recipe finds wrong with a state that was altered.
    except (NonFiniteLoss, StateError, ValueError) as error:
        return str(error)


def _follows(recipe: Recipe, since: Point, point: Point) -> bool:
    """Say whether a point follows from an earlier one as that is on the disk."""
    return _is(_recomputed(recipe, since, load(since.path), point, Ancestors()), point)


def _believed(recipe: Recipe, since: Point | None, point: Point, ancestors: Ancestors) -> Finding:
    """Look at what the manifest of a state that is right says beside it."""
    try:
        return Finding(point.iter, _iter(since), why=false(recipe, point, load(point.path), ancestors))
    except Gone as error:
        return Finding(point.iter, _iter(since), why=f"its parent is not on the disk, and {error}", checked=False)


def _is(mine: State | Gone | str, point: Point) -> bool:
    return isinstance(mine, State) and digest(mine) == point.manifest.digest


def _doubt(since: Point | None, point: Point, mine: State | str) -> Finding:
    if isinstance(mine, str):
        return Finding(point.iter, _iter(since), why=f"it cannot be recomputed: {mine}")
    leaf = next(leaf for leaf in diff(mine, load(point.path)) if leaf.path not in UNHASHED)
    return Finding(point.iter, _iter(since), leaf=str(leaf))


def _judged(finding: Finding, why: str) -> Finding:
    return attrs.evolve(finding, why=why) if finding.leaf else finding


def _left_open(finding: Finding) -> Finding:
    return _judged(finding, "altered, or the run took another way there: no later checkpoint tells which")


def _name(point: Point) -> str:
    return point.path.name


def _iter(point: Point | None) -> int:
    return 0 if point is None else point.iter
