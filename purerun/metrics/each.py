"""A metric for each member of a population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun.metrics.metric import Metric, Tally
from purerun.valid import whole


@attrs.frozen
class Each(Metric):
    """Judge each member of a population by a metric: a score is a tensor with an entry for each member.

    The output is what a `PredictStep` makes of a population: tensors with a dimension more, the first.

    Attributes:
        members: how many.
        metric: what judges one.

    >>> from purerun.metrics import MeanSquaredError
    >>> metric, batch = Each(2, MeanSquaredError()), {"x": torch.zeros(3, 1), "y": torch.zeros(3, 1)}
    >>> tally = metric.update(metric.init(), torch.tensor([[[1.0]] * 3, [[2.0]] * 3]), batch)
    >>> metric.compute(tally).tolist()
    [1.0, 4.0]
    """

    members: int = attrs.field(validator=whole(1))
    metric: Metric = attrs.field(validator=attrs.validators.instance_of(Metric))

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tallies of no batch, under the number of each member."""
        return self._joined([self.metric.init(device) for _ in range(self.members)])

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Make the tallies after one batch more."""
        parts = [_member(output, place, self.members) for place in range(self.members)]
        each = zip(self._parted(tally), parts, strict=True)
        return self._joined([self.metric.update(own, part, batch) for own, part in each])

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Join two stretches of one process."""
        both = zip(self._parted(a), self._parted(b), strict=True)
        return self._joined([self.metric.merge(first, second) for first, second in both])

    def reduce(self, tallies: Sequence[Tally]) -> Tally:
        """Join the tallies of several processes."""
        members = zip(*map(self._parted, tallies), strict=True)
        return self._joined([self.metric.reduce(own) for own in members])

    def compute(self, tally: Tally) -> Tensor | dict[str, Tensor]:
        """Read the scores off: one tensor, or several by name."""
        scores: list[Any] = [self.metric.compute(own) for own in self._parted(tally)]
        if isinstance(scores[0], Tensor):
            return torch.stack(scores)
        return {name: torch.stack([score[name] for score in scores]) for name in scores[0]}

    def _joined(self, tallies: Sequence[Tally]) -> Tally:
        return {f"{place}.{name}": leaf for place, tally in enumerate(tallies) for name, leaf in tally.items()}

    def _parted(self, tally: Tally) -> list[Tally]:
        parts: list[Tally] = [{} for _ in range(self.members)]
        for name, leaf in tally.items():
            place, _, own = name.partition(".")
            parts[int(place)][own] = leaf
        return parts


def _member(output: Any, place: int, members: int) -> Any:
    """Take one member's part of an output, a nest of tensors."""
    if isinstance(output, dict):
        return {name: _member(value, place, members) for name, value in output.items()}
    if isinstance(output, list | tuple):
        return type(output)(_member(value, place, members) for value in output)
    if not isinstance(output, Tensor) or not output.ndim or len(output) != members:
        got = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"expected outputs with an entry for each of {members} members, got {got}; judge a population of that "
            "many, as pr.Vmap trains it"
        )
    return output[place]
