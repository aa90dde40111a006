"""Where a run starts: at its seed, at a checkpoint of its own, or at the weights of another run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from purerun import program
from purerun.checkpoint import Found, find, load, names, newest, read_manifest
from purerun.recipe.error import RecipeError
from purerun.recipe.overrides import override
from purerun.recipe.recipe import Recipe
from purerun.recipe.resolved import Difference, differences, resolved
from purerun.state import State, StateError, leaves
from purerun.step import Step

_SHOWN = 8  # differences; more are no message but a comparison of two files


@attrs.frozen
class Start:
    """What a run begins with.

    Attributes:
        state: its state.
        checkpoint: what it goes on from; None for a run that begins anew.
        notes: what whoever started it should know, a line each.
    """

    state: State
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()


def anew(recipe: Recipe, step: Step, *, weights: Path | None = None) -> Start:
    """Start at the seed, perhaps with the weights and buffers of a checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        StateError: it has other weights than this model.
    """
    state = step.init(recipe.seed)
    if weights is None:
        return Start(state)
    other = load(weights)
    same_weights(state, other, weights)
    taken = {part: {name: leaf for (name,), leaf in leaves(other[part], report=True)} for part in ("params", "buffers")}
    return Start(placed(state.replace(taken), state), notes=(f"starting with the weights of {weights}",))


def again(recipe: Recipe, step: Step, checkpoint: Path, *, asked: Sequence[str] = ()) -> Start:
    """Go on from a checkpoint.

    What was asked to change does: values of the optimizer that are leaves of the state are
    written into it, slots that another optimizer or wrapper needs start fresh.

    Args:
        recipe: the run.
        step: its training step.
        checkpoint: where to go on: a checkpoint, or a run by its last one.
        asked: the paths of the recipe whose change was asked for.

    Raises:
        RecipeError: another recipe made the checkpoint, and the change was not asked for.
        CheckpointError: the checkpoint cannot be read.
        StateError: its weights are not those of this model.
    """
    checkpoint = find(checkpoint)
    state, manifest = load(checkpoint), read_manifest(checkpoint)
    changes = differences(manifest.recipe, resolved(recipe)) if isinstance(manifest.recipe, dict) else []
    others = [change for change in changes if not _covered(change.path, asked)]
    if others:
        raise RecipeError(_refusal(checkpoint, recipe, others))
    fresh = step.init(recipe.seed)
    if not torch.equal(state["fingerprint"], fresh["fingerprint"]):
        if not changes:
            told = program.difference(state["fingerprint"], step.text())
            raise RecipeError(
                f"{checkpoint} was made by another step, with the same recipe: {told}; go on with the code as it was, "
                "or begin a new run with its weights (--load-from)"
            )
        # Base values that have not changed stay as they are in the state: a hook may have written them.
        adopted = step.adopt(state)
        both = [name for name in state["hyper"].names() if name in adopted["hyper"].names()]
        state = adopted.replace(hyper=state["hyper"].select(*both))
    return Start(placed(state.replace(_written(changes, recipe)), fresh), checkpoint)


def latest(directory: Path) -> Found | None:
    """Find the newest checkpoint of a run that can be believed; None if the run has none at all.

    Raises:
        CheckpointError: all are damaged.
    """
    return newest(directory, load) if names(directory) else None


def placed(state: State, like: State) -> State:
    """Put each leaf on the device on which another state has it."""
    devices = {path: leaf.device for path, leaf in leaves(like)}
    moved: dict[str, Any] = {}
    for path, leaf in leaves(state):
        if leaf.device != devices.get(path, leaf.device):
            tree = moved
            for name in path[:-1]:
                tree = tree.setdefault(name, {})
            tree[path[-1]] = leaf.to(devices[path])
    return state.replace(moved) if moved else state


def same_weights(state: State, other: State, where: Path | str) -> None:
    """Check that a state has the weights that another one has.

    Raises:
        StateError: a name or a shape is another.
    """
    for part in ("params", "buffers"):
        have = {path: tuple(leaf.shape) for path, leaf in leaves(other[part], report=True)}
        want = {path: tuple(leaf.shape) for path, leaf in leaves(state[part], report=True)}
        odd = [path for path in {**want, **have} if want.get(path) != have.get(path)]
        if odd:
            (name,) = odd[0]
            raise StateError(
                f"{where}: expected `{name}` of shape {want.get(odd[0], 'none')}, got {have.get(odd[0], 'none')}"
                f" ({len(odd)} of the {part} differ); give the checkpoint of the same model"
            )


def _covered(path: str, asked: Iterable[str]) -> bool:
    return any(path == each or path.startswith(f"{each}.") for each in asked)


def _written(changes: Sequence[Difference], recipe: Recipe) -> dict[str, Any]:
    """List the leaves of the state that changes of a recipe mean.

    Base values that have not changed stay as they are in the state: a hook may have written them.
    """
    undone = [f"{change.path}={change.old}" for change in changes if change.path.startswith("optimizer.")]
    before, now = override(recipe, undone).optimizer.hyper(), recipe.optimizer.hyper()
    seed = {"seed": recipe.seed} if any(change.path == "seed" for change in changes) else {}
    return {"hyper": {name: value for name, value in now.items() if value != before.get(name)}, **seed}


def _refusal(checkpoint: Path, recipe: Recipe, changes: Sequence[Difference]) -> str:
    shown = ", ".join(map(str, changes[:_SHOWN])) + (", ..." if len(changes) > _SHOWN else "")
    settings = [f"{change.path}={change.old}" for change in changes]
    try:
        override(recipe, settings)
        before = " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
        remedy = f"go on as before with {before}, or ask for the change by setting the new values"
    except RecipeError:
        remedy = "go on with the recipe as it was, or begin another run (--work-dir)"
    return f"{checkpoint} was made by another recipe: {shown}; {remedy}"
