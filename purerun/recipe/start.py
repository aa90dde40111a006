"""Where a run goes on: at a checkpoint of its own, as it was or with what was asked to change."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from purerun import program
from purerun.checkpoint import Found, find, load, names, newest, read_manifest
from purerun.recipe.alternation import Learner
from purerun.recipe.changes import consequences, covered, is_free, own_path
from purerun.recipe.error import RecipeError
from purerun.recipe.overrides import override
from purerun.recipe.recipe import Recipe
from purerun.recipe.resolved import Difference, differences, resolved
from purerun.state import State, leaves

_SHOWN = 8  # differences; more are no message but a comparison of two files


@attrs.frozen
class Start:
    """What a run begins with.

    Attributes:
        state: its state.
        checkpoint: what it goes on from; None for a run that begins anew.
        notes: what whoever started it should know, a line each.
        changes: how the recipe was changed on the way, as manifests keep it.
    """

    state: State
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[dict[str, Any], ...] = ()


def again(
    recipe: Recipe, step: Learner, checkpoint: Path, *, asked: Sequence[str] = (), state: State | None = None
) -> Start:
    """Go on from a checkpoint.

    What was asked to change does: values of the optimizer that are leaves of the state are
    written into it, slots that another optimizer or wrapper needs start fresh.

    Args:
        recipe: the run.
        step: its training step.
        checkpoint: where to go on: a checkpoint, or a run by its last one.
        asked: the paths of the recipe whose change was asked for.
        state: what is in the checkpoint, for whoever has read it already.

    Raises:
        RecipeError: another recipe made the checkpoint, and the change was not asked for.
        CheckpointError: the checkpoint cannot be read.
        StateError: its weights are not those of this model.
    """
    checkpoint = find(checkpoint)
    manifest = read_manifest(checkpoint)
    state = load(checkpoint) if state is None else state
    changes = differences(manifest.recipe, resolved(recipe)) if isinstance(manifest.recipe, dict) else []
    others = [change for change in changes if not (is_free(change) or covered(change.path, asked))]
    if others:
        raise RecipeError(_refusal(checkpoint, recipe, others))
    felt = {change.path: [change.old, change.new] for change in changes if not is_free(change)}
    history = ({"iter": int(state["iter"]), "changes": felt},) if felt else ()
    return Start(
        carried(state, recipe, step, changes, where=checkpoint),
        checkpoint,
        notes=consequences(changes, recipe, state),
        changes=(*manifest.changes, *history),
    )


def carried(state: State, recipe: Recipe, step: Learner, changes: Sequence[Difference], *, where: Path | str) -> State:
    """Make the state with which a run goes on after changes of its recipe.

    Args:
        state: where the run stands.
        recipe: as it is now.
        step: its training step.
        changes: what was changed in it; nothing, if it is as it was.
        where: what to call the state in an error.

    Raises:
        RecipeError: another step made the state, and no change explains it.
        StateError: its weights are not those of this model.
    """
    fresh = step.init(recipe.seed)
    if not torch.equal(state["fingerprint"], fresh["fingerprint"]):
        if not changes:
            told = program.difference(state["fingerprint"], step.text())
            raise RecipeError(
                f"{where} was made by another step, with the same recipe: {told}; go on with the code as it was, "
                "or begin a new run with its weights (--load-from)"
            )
        # Base values that have not changed stay as they are in the state: a hook may have written them.
        adopted = step.adopt(state)
        both = {path for path, _ in leaves(adopted["hyper"])}
        state = adopted.replace(hyper=_nested((path, leaf) for path, leaf in leaves(state["hyper"]) if path in both))
    return placed(state.replace(_written(changes, recipe)), fresh)


def latest(directory: Path) -> Found[State] | None:
    """Find the newest checkpoint of a run that can be believed; None if the run has none at all.

    Raises:
        CheckpointError: all are damaged.
    """
    return newest(directory, load) if names(directory) else None


def placed(state: State, like: State) -> State:
    """Put each leaf on the device on which another state has it."""
    devices = {path: leaf.device for path, leaf in leaves(like)}
    moved = _nested(
        (path, leaf.to(devices[path])) for path, leaf in leaves(state) if leaf.device != devices.get(path, leaf.device)
    )
    return state.replace(moved) if moved else state


def _nested(found: Iterable[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Make the tree of what lies at some paths."""
    tree: dict[str, Any] = {}
    for path, leaf in found:
        below = tree
        for name in path[:-1]:
            below = below.setdefault(name, {})
        below[path[-1]] = leaf
    return tree


def _written(changes: Sequence[Difference], recipe: Recipe) -> dict[str, Any]:
    """List the leaves of the state that changes of a recipe mean.

    Base values that have not changed stay as they are in the state: a hook may have written them.
    """
    own = [change for change in changes if own_path(change.path).startswith("optimizer.")]
    # Of another optimizer all values are new.
    others = tuple(change.path.removesuffix("class") for change in own if change.path.endswith("optimizer.class"))
    undone = [f"{change.path}={change.old}" for change in own if not change.path.startswith(others)]
    before = {path: value for path, value in _bases(override(recipe, undone)) if not _place(path).startswith(others)}
    seed = {"seed": recipe.seed} if any(change.path == "seed" for change in changes) else {}
    return {"hyper": _nested((path, value) for path, value in _bases(recipe) if value != before.get(path)), **seed}


def _bases(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], float]]:
    """List the base values of the hyper-parameters, by their paths in `hyper` of a state."""
    for step, part in recipe.parts.items():
        for name, value in part.optimizer.hyper().items():
            yield ((step, name) if step else (name,)), value


def _place(path: tuple[str, ...]) -> str:
    """Say where in a recipe the optimizer is whose base value has this path in `hyper`."""
    return "".join(f"steps.{step}." for step in path[:-1]) + "optimizer."


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
