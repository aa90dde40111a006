"""A run taken back to an earlier iteration, from which it goes on as if it had just come there."""

from __future__ import annotations

from pathlib import Path

from purerun.checkpoint import Manifest, name_of, path_of, point, read_manifest, save
from purerun.history.moment import moment
from purerun.history.timeline import timeline
from purerun.recipe import Recipe
from purerun.sinks.claim import claimed


def rewind(run: str | Path, recipe: Recipe, iter: int) -> Manifest:
    """Make an earlier iteration the one that a run goes on from.

    Its state is read, or computed again from the last checkpoint before it; it becomes a checkpoint,
    and `last` names it.  Later checkpoints, and lines of the log, stay until the run goes on.

    Args:
        run: its directory.
        recipe: of its recipe file; what the run had set otherwise is set again.
        iter: the iteration; the first one is 1.

    Returns:
        What the checkpoint of that iteration says.

    Raises:
        HistoryError: the run has not come so far, or another recipe made it.
        RecipeError: another program made it.
        SinkError: another process trains there.
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
    ...     _ = pr.recipe.train(recipe, folder)
    ...     _ = rewind(folder, recipe, 3)
    ...     pr.checkpoint.names(folder), pr.checkpoint.last(folder)
    (('iter_00000002', 'iter_00000003', 'iter_00000004'), 'iter_00000003')
    """
    line = timeline(run)
    with claimed([line.run]):
        found = moment(line, recipe, iter, line.run / ".rewind")
        place = path_of(run, iter)
        if not found.here:
            save(
                found.state,
                place,
                recipe=found.recipe,
                parent=found.parent,
                changes=found.changes,
                memory=found.memory,
            )
        point(run, name_of(iter))
    return read_manifest(place)
