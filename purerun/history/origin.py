"""The first state of a run that began with the weights of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from purerun.checkpoint import CheckpointError, is_url
from purerun.history.error import Gone, HistoryError
from purerun.identity import digest
from purerun.recipe import Recipe
from purerun.recipe.alternation import Learner
from purerun.recipe.weights import LOAD_FROM, Weights, anew
from purerun.state import State, StateError

__all__ = ["LOAD_FROM", "loaded"]


def loaded(recipe: Recipe, step: Learner, module: nn.Module, origin: Mapping[str, Any]) -> State:
    """Make the first state again.

    Args:
        recipe: of the run.
        step: its training step.
        module: the module of the step.
        origin: what the manifests of the run tell about the weights.

    Raises:
        Gone: the weights cannot be read any more, or are others now.
        HistoryError: what the manifests tell is not how weights are told.
    """
    told = f"the run began with the weights of {origin.get('path')}"
    # A file is only read; but the manifest of somebody else must not make us call up a server.
    if is_url(str(origin.get("path"))):
        raise Gone(f"{told}, which are not on this machine; it can be computed from its first checkpoint on")
    try:
        weights = Weights(**{name: value for name, value in origin.items() if name != "digest"})
        state = anew(recipe, step, module, weights=weights).state
    except TypeError as error:
        raise HistoryError(f"{told}, which cannot be read: {error}") from error
    except (CheckpointError, StateError) as error:
        raise Gone(f"{told}, which cannot be read: {error}") from error
    if digest(state) != origin.get("digest"):
        raise Gone(f"{told}, which are others now; it can be computed from its first checkpoint on")
    return state
