"""Commands that look at recipes and runs, and change nothing: `schedule` and `digest`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from purerun.cli.exits import Mistake
from purerun.cli.runs import Flag, Settings
from purerun.cli.values import Place, whole

if TYPE_CHECKING:
    from purerun.recipe import Part, Recipe


def schedule(
    recipe: Place,
    /,
    *,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
    iters_per_epoch: Annotated[int | None, whole(1)] = None,
    settings: Settings = None,
) -> None:
    """Print the hyper-parameters that a recipe's schedule gives.

    Those of each epoch's first iteration, as a table; with --json, those of every one.

    Args:
        recipe: The recipe file.
        as_json: Print {"lr": [one number an iteration], ...}.
        iters_per_epoch: Iterations of an epoch; those of the recipe's own data unless given.
        settings: PATH=VALUE: change a value of the recipe. Can be repeated.
    """
    from purerun.recipe import load, override

    value = override(load(recipe), settings or ())
    length = iters_per_epoch or _length(value.train)
    found = planned(value, length)
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    rows = zip(*(column[::length] for column in found.values()), strict=True)
    sys.stdout.write("\t".join(("epoch", "iter", *found)) + "\n")
    for epoch, row in enumerate(rows):
        sys.stdout.write("\t".join((str(epoch), str(epoch * length), *(f"{value:.6g}" for value in row))) + "\n")


def planned(recipe: Recipe, epoch_length: int) -> dict[str, list[float]]:
    """List the values of the learning rate, and of every other hyper-parameter with a schedule, at each batch.

    Of several steps, each name has that of its step before it: `critic.lr`.
    """
    calls = len(recipe.parts)
    batches = (recipe.epochs or 0) * epoch_length if recipe.iters is None else -(-recipe.iters // calls)
    found: dict[str, list[float]] = {}
    for place, (step, part) in enumerate(recipe.parts.items()):
        if recipe.alternate is not None and any(each.by == "iter" for each in part.schedule):
            raise Mistake(
                f"expected schedules by epoch where a recipe has an alternate of its own, got one by iteration in step "
                f"{step!r}: only a run knows at which iterations it is called; look at `{step}.lr` in a log"
            )
        counts = [_count(part, batch * calls + place, batch, epoch_length) for batch in range(batches)]
        for name, column in _columns(part, counts, epoch_length).items():
            found[f"{step}.{name}" if step else name] = column
    return found


def _columns(part: Part, counts: Sequence[int], epoch_length: int) -> dict[str, list[float]]:
    from purerun.schedule import Plan

    base = part.optimizer.hyper()
    for each in part.schedule:
        if each.param not in base:
            raise Mistake(f"expected schedules of {', '.join(base)}, got {each!r} of {each.param!r}")
    names = dict.fromkeys([*(name for name in base if name == "lr"), *(each.param for each in part.schedule)])
    maps = [Plan(part.schedule)(batch // epoch_length, count) for batch, count in enumerate(counts)]
    return {
        told: [float(each[name](value)) if name in each else value for each in maps]
        for name in names
        for told, value in _bases(part, name, base[name])
    }


def _bases(part: Part, name: str, base: float) -> list[tuple[str, float]]:
    """List what a hyper-parameter begins with: of a sweep that gives members their own, each one's, as logs call it."""
    from purerun.population import names
    from purerun.wrappers import Vmap

    swept = next((each.hyper[name] for each in part.wrappers if isinstance(each, Vmap) and name in each.hyper), None)
    return [(name, base)] if swept is None else list(zip(names(name, len(swept)), swept, strict=True))


def _count(part: Part, iter: int, batch: int, epoch_length: int) -> int:
    """Say what the schedules of a step count at a batch: iterations, or what `Accumulate` counts in their place."""
    from purerun.wrappers import Accumulate

    for each in part.wrappers:
        if isinstance(each, Accumulate) and each.schedule == "update":
            if each.window == "run":
                return batch // each.count
            epoch, place = divmod(batch, epoch_length)
            return epoch * -(-epoch_length // each.count) + place // each.count
    return iter


def digest(path: str, /) -> None:
    """Print the digest of a checkpoint, or of a run's last one.

    64 hex digits; all bytes of the checkpoint are read and verified.

    Args:
        path: A checkpoint or the directory of a run, or the URL of one.
    """
    from purerun.checkpoint import load
    from purerun.identity import digest as digest_of

    sys.stdout.write(digest_of(load(path)) + "\n")


def _length(loader: object) -> int:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError as error:
        raise Mistake(
            f"how many iterations an epoch has is not known ({error}); say it with --iters-per-epoch"
        ) from error
