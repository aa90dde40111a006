"""What a run that was interrupted has in common with the one that never was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import attrs
import numpy as np
from resuming.tape import Line

Weights = Mapping[str, np.ndarray]


@attrs.frozen
class Outcome:
    """A whole run.

    Attributes:
        parts: the tape of each process.
        weights: in the end, buffers included.
    """

    parts: tuple[tuple[Line, ...], ...]
    weights: Weights

    def lines(self) -> list[Line]:
        """Join the tapes: what a process did replaces what earlier ones did from its first step on."""
        lines: list[Line] = []
        for part in self.parts:
            lines = [line for line in lines if not part or line.step < part[0].step] + list(part)
        return lines


@attrs.frozen
class Verdict:
    """How an interrupted run compares.

    Attributes:
        weights: whether all bits of the final weights and buffers are the same.
        difference: the largest between them, counters left out.
        order: whether the steps were given the same samples in the same order.
        twice: samples that came more than once in the epoch that was resumed.
        never: samples that did not come in it.
        losses: after how many steps of the whole run the losses part; None if they do not.
        again: steps that were done more than once.
    """

    weights: bool
    difference: float
    order: bool
    twice: int
    never: int
    losses: int | None
    again: int


def verdict(whole: Outcome, other: Outcome, samples: int) -> Verdict:
    """Compare a run with the one that was never stopped."""
    ours, theirs = whole.lines(), other.lines()
    twice, never = _counts(_affected(other), theirs, samples)
    return Verdict(
        weights=_same(whole.weights, other.weights),
        difference=_difference(whole.weights, other.weights),
        order=[line.samples for line in ours] == [line.samples for line in theirs],
        twice=twice,
        never=never,
        losses=_parting([line.loss for line in ours], [line.loss for line in theirs]),
        again=sum(map(len, other.parts)) - len(theirs),
    )


def _affected(outcome: Outcome) -> int:
    """Say which epoch the last process began in, by the runner's own count."""
    last = outcome.parts[-1]
    return last[0].epoch if last else outcome.lines()[-1].epoch + 1


def _counts(epoch: int, lines: Sequence[Line], samples: int) -> tuple[int, int]:
    seen = Counter(sample for line in lines if line.epoch == epoch for sample in line.samples)
    return sum(count > 1 for count in seen.values()), samples - len(seen)


def _parting(ours: Sequence[float], theirs: Sequence[float]) -> int | None:
    return next((step for step, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b), None)


def _same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def _difference(ours: Weights, theirs: Weights) -> float:
    floats = [name for name, tensor in ours.items() if np.issubdtype(tensor.dtype, np.floating)]
    return max(float(np.abs(ours[name].astype(np.float64) - theirs[name]).max()) for name in floats)
