"""Where two runs part that should agree: the first iteration, and the leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

from purerun.checkpoint import load
from purerun.history.replay import replay
from purerun.history.stretches import stretches
from purerun.history.timeline import Point, Timeline, timeline
from purerun.identity import UNHASHED, LeafDiff, diff, digest
from purerun.recipe import Recipe
from purerun.state import State


@attrs.frozen
class Parting:
    """Where two runs part.

    Attributes:
        since: the last iteration at which checkpoints of both agree; 0 is the seed.
        iter: the first iteration in which they differ; None when they agree.
        leaves: what differs there: between the two runs, or between what was recomputed and the checkpoint
            of the guilty one.
        guilty: the run whose checkpoint of that iteration does not follow from its own recipe, while the
            recipes of both lead to the same state; None when they do not.
        until: the iteration up to which was looked.
    """

    since: int
    until: int
    iter: int | None = None
    leaves: tuple[LeafDiff, ...] = ()
    guilty: Path | None = None


def bisect(a: str | Path, b: str | Path, recipe_a: Recipe, recipe_b: Recipe) -> Parting:
    """Find the first iteration, and the leaves, in which two runs differ.

    The digests in their manifests say between which checkpoints they part; from the last one in which
    they agree, or from their seeds, both are replayed side by side, each with its own settings.

    Args:
        a: the directory of a run.
        b: that of the other.
        recipe_a: of the recipe file of `a`.
        recipe_b: of that of `b`.

    Raises:
        HistoryError: one is no directory of a run, or another recipe made it.
        RecipeError: another program made it.

    >>> import tempfile
    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     schedule=pr.schedule.Step(1, gamma=1.0),
    ...     epochs=2,
    ... )
    >>> from purerun.recipe import override, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = train(recipe, f"{folder}/a"), train(override(recipe, ["schedule.0.gamma=0.5"]), f"{folder}/b")
    ...     parting = bisect(f"{folder}/a", f"{folder}/b", recipe, recipe)
    >>> parting.since, parting.iter, str(parting.leaves[0])
    (2, 3, 'params/bias: 1 of 1 elements differ, by at most 0.05')
    """
    one, other = timeline(a), timeline(b)
    since, until = _between(one, other)
    if since == until:
        return Parting(since, until)
    left, right = _retold(recipe_a, one, since, until), _retold(recipe_b, other, since, until)
    for (mine, odd), (theirs, their_odd) in zip(left, right, strict=False):
        iter = int(mine["iter"])
        if leaves := _apart(mine, theirs):
            return Parting(since, until, iter, leaves)
        if odd or their_odd:
            return Parting(since, until, iter, odd or their_odd, one.run if odd else other.run)
    return Parting(since, until)


def _between(one: Timeline, other: Timeline) -> tuple[int, int]:
    """Find the last iteration at which checkpoints agree, and the first one after it at which they do not.

    One by one and not by halves: in a run of which one file was changed, later ones may agree again.
    """
    mine, theirs = ({point.iter: point.manifest.digest for point in line.points} for line in (one, other))
    since = 0
    for iter in sorted({*mine} & {*theirs}):
        if mine[iter] != theirs[iter]:
            return since, iter
        since = iter
    return since, min(one.tip.iter, other.tip.iter)


def _retold(recipe: Recipe, line: Timeline, since: int, until: int) -> Iterator[tuple[State, tuple[LeafDiff, ...]]]:
    """Replay a run: each state, and the leaves in which the checkpoint of its iteration, if there is one, is another.

    Where the recipe was changed, that checkpoint is of the state before, and what is told is the one after.
    """
    at = next((point for point in line.points if point.iter == since), None)
    state = None if at is None else load(at.path)
    odd: tuple[LeafDiff, ...] = ()
    for point in _legs(line, since, until):
        whole = point.iter <= until
        ways = stretches(at, point, None if whole else until)
        states = replay(recipe, ways, state)
        for state in states:
            if int(state["iter"]) < min(point.iter, until):
                yield state, odd
                odd = ()
        if whole and digest(state) != point.manifest.digest:
            odd = _apart(state, load(point.path))
        at = point
    yield state, odd


def _legs(line: Timeline, since: int, until: int) -> list[Point]:
    inner = [point for point in line.points if since < point.iter <= until]
    return inner if inner and inner[-1].iter == until else [*inner, line.after(until)]


def _apart(mine: State, theirs: State) -> tuple[LeafDiff, ...]:
    return tuple(leaf for leaf in diff(mine, theirs) if leaf.path not in UNHASHED)
