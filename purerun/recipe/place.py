"""The directory of a run: its names, and whether anything there would be lost."""

from __future__ import annotations

from pathlib import Path

from purerun.checkpoint import SaveError, find, has_scheme, names
from purerun.checkpoint.publish import write_text
from purerun.recipe.error import RecipeError
from purerun.recipe.recipe import Recipe
from purerun.recipe.resolved import text
from purerun.sinks.desk import belongs
from purerun.sinks.lines import refused

RECIPE, LOG = "recipe.toml", "log.jsonl"

LAST = "last"
"""Stands for the newest good checkpoint of a run."""


def holds_run(directory: Path) -> bool:
    """Say whether a directory holds anything of a run that could be lost: lines of a log, or checkpoints.

    Raises:
        RecipeError: it is a URL or a file; a run writes to a local directory.
        SaveError: it cannot be looked into.
    """
    if has_scheme(directory):
        raise RecipeError(f"expected a local directory for the run, got {directory}; save single checkpoints to URLs")
    log = directory / LOG
    try:
        if directory.exists() and not directory.is_dir():
            raise RecipeError(f"{directory}: cannot be written: it is no directory; choose another --work-dir")
        return (log.exists() and log.stat().st_size > 0) or bool(names(directory))
    except OSError as error:
        raise SaveError(f"{directory}: cannot be written: {error}; choose another --work-dir") from error


def spare(directory: Path, resume: str | Path | None) -> None:
    """Refuse to write over the run in a directory, unless it is the one that is gone on with.

    Args:
        directory: holds a run.
        resume: what to go on from, as `train` takes it.

    Raises:
        RecipeError: another run would be lost.
        CheckpointError: there is no checkpoint to go on from.
    """
    if resume == LAST or (resume is not None and belongs(find(resume), directory)):
        return
    which, how = ("a run", "--resume") if resume is None else (f"another run than {resume}", "--resume alone")
    # Without a checkpoint, that would begin at the beginning.
    go_on = f"go on with it ({how}), " if resume is None or names(directory) else ""
    raise RecipeError(
        f"{directory} holds {which}; {go_on}replace it (--overwrite), or choose another place (--work-dir)"
    )


def write_recipe(recipe: Recipe, directory: Path) -> None:
    """Write the recipe of a run down where people look for it.

    Raises:
        SinkError: something else is in the way.
        SaveError: nothing can be written there.
    """
    file = directory / RECIPE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(file, text(recipe))
    except OSError as error:
        raise refused(file, error) from error
