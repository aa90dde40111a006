"""What is healthy of a recipe: the same run without the parts in which a fault was found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun.data import Foreign
from purerun.data.nest import mapped
from purerun.metrics import Metric, Tally
from purerun.recipe import Recipe


def healthy(recipe: Recipe, faulty: Collection[str], batches: Mapping[str, Sequence[Any]]) -> Recipe:
    """Make a recipe without its faulty parts.

    Faulty data are stood in for by a few of their batches, read once; a faulty metric by zeros of its names, since
    hooks may ask for them; hooks are left out, and the validation where the forward is at fault.

    Args:
        recipe: the whole.
        faulty: the parts: "train", "val", "test", "forward", "hooks.0", "metrics.accuracy", ...
        batches: what was read of each source.
    """
    metrics = {
        name: StandIn(metric.blank()) if f"metrics.{name}" in faulty else metric
        for name, metric in recipe.metrics.items()
    }
    hooks = [hook for place, hook in enumerate(recipe.hooks) if f"hooks.{place}" not in faulty]
    changes: dict[str, Any] = {name: Foreign(list(batches[name])) for name in batches if name in faulty}
    unjudged: dict[str, Any] = {"val": None, "best": ()} if "forward" in faulty else {}
    return attrs.evolve(recipe, metrics=metrics, hooks=hooks, **{**changes, **unjudged})


@attrs.frozen
class StandIn(Metric):
    """Stands in for a faulty metric, so that the names and shapes of the scores stay.

    Attributes:
        score: in the form of the other's.
    """

    score: Any = attrs.field(eq=id)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make an empty tally."""
        return {}

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Count nothing."""
        return {}

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Join nothing."""
        return {}

    def compute(self, tally: Tally) -> Tensor | dict[str, Tensor]:
        """Give zeros."""
        return mapped(torch.zeros_like, self.score)
