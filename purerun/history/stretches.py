"""Which recipe was in force when: the iterations between two checkpoints, cut where a recipe was changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from purerun.checkpoint import Manifest
from purerun.history.error import HistoryError
from purerun.history.timeline import Point
from purerun.recipe import Difference, Recipe, RecipeError, differences, override, resolved
from purerun.recipe.changes import is_free
from purerun.recipe.resolved import flat


@attrs.frozen
class Stretch:
    """Iterations that one recipe has made.

    Attributes:
        stop: the iteration that it ends with.
        recipe: the recipe in force as data, path -> value.
        changes: what was changed in the recipe at its beginning, and so written into the state there.
    """

    stop: int
    recipe: Mapping[str, Any] = attrs.field(repr=False)
    changes: tuple[Difference, ...] = ()


def stretches(since: Point | None, to: Point, stop: int | None = None) -> tuple[Stretch, ...]:
    """Say which recipes lead from one checkpoint to a later one, by undoing the changes that lie between.

    Args:
        since: the checkpoint to begin at; None for the seed.
        to: the later one, which tells all changes before it.
        stop: end after this iteration already, before any change that was made there.

    Raises:
        HistoryError: the later one holds no recipe, or does not come from the earlier one.

    >>> import tempfile
    >>> change = {"iter": 3, "changes": {"optimizer.lr": [0.1, 0.2]}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state = pr.testing.counted(iter=5)
    ...     manifest = pr.save(state, folder, recipe={"optimizer": {"lr": 0.2}}, changes=[change])
    >>> [(stretch.stop, stretch.recipe) for stretch in stretches(None, Point(folder, manifest))]
    [(3, {'optimizer.lr': 0.1}), (5, {'optimizer.lr': 0.2})]
    """
    known, told = [] if since is None else since.manifest.changes, to.manifest.changes
    if told[: len(known)] != known:
        raise HistoryError(
            f"expected checkpoints of one run, but iteration {to.iter} does not come from "
            f"iteration {0 if since is None else since.iter}: their recipes were changed in other ways"
        )
    end = to.iter if stop is None else stop
    recipe, found = in_force(to.manifest), []
    for entry in reversed(told[len(known) :]):
        if stop is None or entry["iter"] < stop:
            changes = tuple(Difference(path, old, new) for path, (old, new) in entry["changes"].items())
            found.append(Stretch(end, recipe, changes))
            end = entry["iter"]
        recipe = _undone(recipe, entry["changes"])
    return (Stretch(end, recipe), *reversed(found))


def in_force(manifest: Manifest) -> dict[str, Any]:
    """Read the recipe by which a checkpoint was made: path -> value.

    Raises:
        HistoryError: it holds none.
    """
    if not isinstance(manifest.recipe, dict):
        raise HistoryError(
            f"expected a run of `purerun train`, but the checkpoint of its iteration {manifest.counters.get('iter')} "
            "holds no recipe; only the script that made it can compute it again"
        )
    return flat(manifest.recipe)


def fitted(recipe: Recipe, data: Mapping[str, Any]) -> Recipe:
    """Make the recipe that data of a run describe, from the one of its file.

    Raises:
        HistoryError: they differ in more than values that can be set; it lists the differences.

    >>> net = pr.Module(torch.nn.Linear, in_features=2, out_features=1)
    >>> recipe = pr.Recipe(model=net, loss=print, train=[0], optimizer=pr.optim.SGD(lr=0.1), epochs=2, device="cpu")
    >>> data = flat(resolved(recipe)) | {"optimizer.lr": 0.2}
    >>> fitted(recipe, data).optimizer.lr
    0.2
    """
    recipe = recipe.here()
    try:
        value = override(recipe, settings(recipe, data))
    except RecipeError:
        value, left = recipe, [change for change in _felt(recipe, data) if not _can_be_set(recipe, change)]
    else:
        left = _felt(value, data)
    if left:
        raise HistoryError(
            f"expected the recipe that the run was made by, but it differs in what cannot be set: "
            f"{', '.join(map(str, left))}; give the file as it was with --recipe"
        )
    return value


def settings(recipe: Recipe, data: Mapping[str, Any]) -> tuple[str, ...]:
    """List what to set, as `PATH=VALUE`, to make a recipe what data of a run describe."""
    recipe = recipe.here()
    changes = differences(resolved(recipe), data)
    return tuple(_setting(change) for change in changes if not is_free(change) or _can_be_set(recipe, change))


def _felt(recipe: Recipe, data: Mapping[str, Any]) -> list[Difference]:
    return [change for change in differences(resolved(recipe), data) if not is_free(change)]


def _setting(change: Difference) -> str:
    return f"{change.path}={change.new}"


def _undone(recipe: Mapping[str, Any], changes: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    before = {**recipe, **{path: old for path, (old, _) in changes.items()}}
    return {path: value for path, value in before.items() if value is not None}


def _can_be_set(recipe: Recipe, change: Difference) -> bool:
    try:
        override(recipe, [_setting(change)])
    except RecipeError:
        return False
    return True
