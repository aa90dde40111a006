"""A new run that branches off from an iteration of another one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from purerun.checkpoint import Manifest, name_of, path_of, point, save
from purerun.history.ground import built, free
from purerun.history.moment import copy_log, moment
from purerun.history.stretches import fitted
from purerun.history.timeline import Timeline, timeline
from purerun.identity import digest
from purerun.recipe import Recipe, differences, override, resolved
from purerun.recipe.changes import is_free
from purerun.recipe.place import write_recipe
from purerun.recipe.resolved import flat
from purerun.recipe.run import threads
from purerun.recipe.start import carried


def fork(
    run: str | Path, recipe: Recipe, iter: int, directory: str | os.PathLike[str], settings: Sequence[str] = ()
) -> Manifest:
    """Begin a new run with the state that another one had at an iteration, perhaps with other settings.

    Its first checkpoint is that state, with the changes written into it as a resume writes them; its
    log begins with the lines of the other one up to there.  All of it comes into being, or nothing.

    Args:
        run: the directory of the other run.
        recipe: of its recipe file; what the run had set otherwise is set again.
        iter: the iteration; the first one is 1.
        directory: of the new run.
        settings: changes of the recipe, as `PATH=VALUE`.

    Returns:
        What the first checkpoint of the new run says.

    Raises:
        HistoryError: the run has not come so far, another recipe made it, or the directory holds a run or belongs to
            one already.
        RecipeError: a change is not possible, or another program made the run.
        SaveError: nothing can be written there.

    >>> import tempfile
    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=2,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.recipe.train(recipe, f"{folder}/a")
    ...     manifest = fork(f"{folder}/a", recipe, 3, f"{folder}/b", ["optimizer.lr=0.2"])
    ...     float(pr.load(f"{folder}/b")["hyper", "lr"]), manifest.changes
    (0.2, [{'iter': 3, 'changes': {'optimizer.lr': [0.1, 0.2]}}])
    """
    place = free(directory)
    line = timeline(run)
    with built(place) as fresh:
        return _begun(line, recipe, iter, fresh, settings)


def _begun(line: Timeline, recipe: Recipe, iter: int, fresh: Path, settings: Sequence[str]) -> Manifest:
    """Make the files of the new run."""
    found = moment(line, recipe, iter, fresh / "scratch")
    old = fitted(recipe, flat(found.recipe))
    new = override(old, settings)
    changes = differences(resolved(old), resolved(new))
    with threads(new.threads):
        step = new.train_step(new.module())
        state = carried(found.state, new, step, changes, where=f"the state of iteration {iter}")
    felt = {change.path: [change.old, change.new] for change in changes if not is_free(change)}
    write_recipe(new, fresh)
    copy_log(line.run, fresh, found.logged)
    # The change is noted even if it is none: a checkpoint with one of its own iteration begins a fork.
    manifest = save(
        state,
        path_of(fresh, iter),
        recipe=resolved(new),
        parent=digest(found.state),
        changes=(*found.changes, {"iter": iter, "changes": felt}),
        memory=found.memory,
    )
    point(fresh, name_of(iter))
    return manifest
