"""The weights that a run begins with: fresh ones, or those of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from torch import nn

from purerun.checkpoint import is_url, load_weights
from purerun.checkpoint.place import local
from purerun.identity import digest
from purerun.population import members, unstack
from purerun.recipe.alternation import Learner
from purerun.recipe.error import RecipeError
from purerun.recipe.recipe import Recipe
from purerun.recipe.start import Start
from purerun.state import State, StateError, leaves

LOAD_FROM = "load_from"
"""So the changes of a run call the weights that it began with: the fields of `Weights`, and the digest of the state."""


@attrs.frozen
class Weights:
    """Which weights a run takes from where.

    Attributes:
        path: what `pr.checkpoint.read_weights` reads: a checkpoint, a run, `.safetensors`, `.pth`, or a URL.
        strict: whether they must be those of the model exactly; otherwise what fits is taken.
        rename: regular expression -> replacement, as in `pr.load_weights`.
        entry: which of the file's weights: "" for the trained ones, "ema" for an average.
    """

    path: str = attrs.field(converter=os.fspath)
    strict: bool = attrs.field(default=True, kw_only=True)
    rename: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, converter=dict)
    entry: str = attrs.field(default="", kw_only=True)

    @classmethod
    def of(cls, given: Weights | str | Path) -> Weights:
        """Make the value of a path; what is one already stays.

        >>> Weights.of("runs/a")
        Weights(path='runs/a', strict=True, rename={}, entry='')
        """
        return given if isinstance(given, Weights) else cls(os.fspath(given))


def anew(recipe: Recipe, step: Learner, module: nn.Module, *, weights: Weights | None = None) -> Start:
    """Start at the seed, with fresh weights or with those of a file.

    Args:
        recipe: the run.
        step: its training step.
        module: its module, which the step is made of; the weights of the file are written into it.
        weights: where they come from.

    Raises:
        CheckpointError: the file cannot be read.
        WeightsDiffer: it has other weights than this model.
        RecipeError: the recipe is a sweep, and only what fits is asked for.
    """
    state = recipe.init(module)
    if weights is None:
        return Start(state)
    if members(state) and not weights.strict:
        raise RecipeError(
            "expected weights that are the model's exactly for a sweep, got strict=False, which would begin all "
            "members with the same others; take them by a rule, with init=[pr.checkpoint.Pretrained(...)] in the recipe"
        )
    like = unstack(state)[0] if members(state) else state
    found, fit = load_weights(like, weights.path, strict=weights.strict, rename=weights.rename, weights=weights.entry)
    # Through the module, so that whatever a step or a wrapper makes of its first weights is made of these.
    with torch.no_grad():
        for part, own in (("params", module.named_parameters()), ("buffers", module.named_buffers())):
            for name, tensor in own:
                tensor.copy_(found[part, name])
    state = step.init(recipe.seed)
    # Found again from wherever the run is computed again.
    path = weights.path if is_url(weights.path) else str(local(weights.path).absolute())
    origin = {**attrs.asdict(weights), "path": path, "digest": digest(state)}
    return Start(
        state,
        notes=(f"starting with the weights of {fit}",),
        # Whoever computes the run again must begin with the same.
        changes=({"iter": 0, "changes": {LOAD_FROM: [None, origin]}},),
    )


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
