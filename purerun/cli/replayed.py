"""What the commands that compute a run again share: its recipe file, and how to go on by hand."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from purerun.cli.exits import Mistake, say
from purerun.cli.values import PlaceIfAny

if TYPE_CHECKING:
    from purerun.checkpoint import Manifest
    from purerun.recipe import Recipe

RecipeFile = Annotated[PlaceIfAny, Parameter(name="--recipe")]


def opened(run: Path, given: Path | None) -> tuple[Path, Recipe]:
    """Find and load the recipe of a run, and tell in what the run differs from it.

    No file of a run names code: the recipe is the one that is given, or has the name of the run's directory.
    """
    import torch

    from purerun.history import fitted, in_force, settings, timeline
    from purerun.recipe import load

    tip = timeline(run).tip.manifest
    file = given or _by_name(run)
    recipe, data = load(file), in_force(tip)
    fitted(recipe, data)
    if others := settings(recipe, data):
        say(f"{run} is computed with {', '.join(others)}, as it was made; {file} says otherwise")
    made = tip.versions.get("torch", "")
    if made != torch.__version__:
        say(f"{run} was made with torch {made}, and this is {torch.__version__}: bits may differ")
    return file, recipe


def command(file: Path, recipe: Recipe, directory: Path, manifest: Manifest) -> str:
    """Write the command that goes on from a checkpoint as it is."""
    from purerun.history import in_force, settings

    wishes = [word for setting in settings(recipe, in_force(manifest)) for word in ("--set", setting)]
    return shlex.join(["purerun", "train", str(file), "--work-dir", str(directory), *wishes, "--resume"])


def _by_name(run: Path) -> Path:
    name = f"{run.absolute().name}.py"
    for file in (Path(name), Path("recipes") / name):
        if file.is_file():
            return file
    raise Mistake(f"expected the recipe of {run} in {name} or recipes/{name}, found neither; give it with --recipe")
