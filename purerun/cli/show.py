"""`show`: what a recipe, a run or a checkpoint is.  Nothing of a run is executed for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from purerun.cli.exits import Mistake
from purerun.cli.runs import Flag, Settings


def show(what: str, /, *, settings: Settings = None, verify: Flag = False) -> None:
    """Print a recipe with all its values as TOML, or what a run or a checkpoint is.

    Each path of the TOML is one for --set.

    Args:
        what: A recipe file, the directory of a run, or a checkpoint (a path or a URL).
        settings: PATH=VALUE: change a value of the recipe. Can be repeated.
        verify: Read and verify all bytes of the checkpoints, not only their manifests and sizes.
    """
    if settings and not what.endswith(".py"):
        raise Mistake(f"expected --set with a recipe file, got it with {what}; leave it out")
    sys.stdout.writelines(_parts(what, settings or [], verify=verify))


def _parts(what: str, settings: list[str], *, verify: bool) -> Iterator[str]:
    from purerun.checkpoint import fetched, find, names
    from purerun.cli.portrait import checkpoint, run
    from purerun.recipe import load, override, text

    if what.endswith(".py"):
        yield text(override(load(what), settings))
        return
    with fetched(what) as place:
        # Of a run elsewhere only the last checkpoint is fetched.
        if place == Path(what) and names(place):
            yield from run(place, verify=verify)
        else:
            yield from checkpoint(find(place), verify=verify)
