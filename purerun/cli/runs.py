"""Commands that run a recipe: `train`, and `judge`, which is called `test` at the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from purerun.cli.exits import DONE, Mistake, say
from purerun.cli.signals import Stop
from purerun.cli.values import Place, PlaceIfAny, whole
from purerun.cli.weights import Renames, Strict, chosen, here, tabled

if TYPE_CHECKING:
    from purerun.state import State

Settings = Annotated[list[str] | None, Parameter(name="--set", negative="")]
Flag = Annotated[bool, Parameter(negative="")]


def train(
    recipe: Place,
    /,
    *,
    work_dir: PlaceIfAny = None,
    settings: Settings = None,
    resume: str | None = None,
    load_from: str | None = None,
    strict: Strict = True,
    rename: Renames = None,
    weights: str = "",
    seed: Annotated[int | None, whole()] = None,
    device: str | None = None,
    overwrite: Flag = False,
) -> int:
    """Train a recipe.

    Args:
        recipe: The recipe file.
        work_dir: Where the run's files go; runs/<recipe name> unless given.
        settings: PATH=VALUE: change a value of the recipe, such as optimizer.lr=0.05. Can be repeated.
        resume: Go on from this checkpoint (a path or a URL); without a name, from the newest good one.
        load_from: Begin with the weights of this checkpoint, run, .safetensors or .pth file (a path or a URL).
        strict: Whether those weights must be the model's exactly; --no-strict takes what fits.
        rename: OLD=NEW: replace the regular expression OLD in the names of those weights. Can be repeated.
        weights: Which of those weights: ema for the average; the trained ones unless given.
        seed: Where all chance of the run comes from; short for --set seed=N.
        device: cpu, cuda, ...; short for --set device=D.
        overwrite: Replace a run that is in the way.
    """
    # A checkpoint of another run may be gone on from in the place of one that is in the way.
    if resume is not None and (load_from is not None or (overwrite and resume == "last")):
        raise Mistake("expected one of --resume, --load-from and --overwrite, got --resume with another; leave it out")
    from purerun import processes
    from purerun.recipe import load as load_recipe
    from purerun.recipe import override, split
    from purerun.recipe import train as train_recipe

    begin = chosen(load_from, weights, rename or (), strict=strict)
    wishes = [*(settings or ()), *_short("seed", seed), *_short("device", device)]
    place = work_dir or default_directory(recipe)
    asked = [".".join(split(wish)[0]) for wish in wishes]
    value = override(load_recipe(recipe), wishes)
    with Stop() as stop, processes.started(value.here().device) as rank, tabled(), here(resume) as start:
        tell = say if rank == 0 else _silent
        ended = train_recipe(
            value, place, resume=start, weights=begin, asked=asked, overwrite=overwrite, stop=stop, say=tell
        )
        code = processes.greatest(stop.code)
    where = f"epoch {int(ended.state['epoch'])}, iteration {int(ended.state['iter'])}"
    if not ended.finished:
        tell(f"stopped at {where}; saved in {place}; go on with --resume")
        return code
    tell(f"finished at {where}; everything is in {place}")
    if rank == 0:
        _print(_result(ended.state))
    return DONE


def judge(
    recipe: Place,
    checkpoint: str | None = None,
    /,
    *,
    work_dir: PlaceIfAny = None,
    settings: Settings = None,
    device: str | None = None,
) -> None:
    """Judge a checkpoint on the recipe's test data.

    The scores are one line of JSON.

    Args:
        recipe: The recipe file.
        checkpoint: The checkpoint, or a run (a path or a URL); the run of this recipe unless given.
        work_dir: Where the run's files are; runs/<recipe name> unless given.
        settings: PATH=VALUE: change a value of the recipe. Can be repeated.
        device: cpu, cuda, ...; short for --set device=D.
    """
    from purerun.checkpoint import load
    from purerun.population import members, spread
    from purerun.recipe import load as load_recipe
    from purerun.recipe import override
    from purerun.recipe import test as test_recipe

    value = override(load_recipe(recipe), [*(settings or ()), *_short("device", device)])
    state = load(checkpoint or work_dir or default_directory(recipe))
    scores = spread(test_recipe(value, state), members(state))
    _print({"mode": "test", **_counters(state), **_encoded(scores)})


def default_directory(recipe: Path) -> Path:
    """Say where a recipe's run goes when nobody says: `runs/<recipe name>`."""
    return Path("runs") / recipe.stem


def _silent(_: str) -> None:
    """Tell nobody: the first of several processes speaks for all."""


def _short(name: str, value: object) -> tuple[str, ...]:
    return () if value is None else (f"{name}={value}",)


def _result(state: State) -> dict[str, Any]:
    from purerun.hooks.scores import judged
    from purerun.identity import digest

    scores = judged(state)
    return {"mode": "val" if scores else "train", **_counters(state), **_encoded(scores), "digest": digest(state)}


def _encoded(scores: Mapping[str, Any]) -> dict[str, Any]:
    from purerun.checkpoint import encoded

    return {name: encoded(float(score)) for name, score in scores.items()}


def _counters(state: State) -> dict[str, int]:
    return {name: int(state[name]) for name in ("epoch", "iter")}


def _print(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
