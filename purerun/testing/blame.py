"""Who is to blame when a run that was resumed comes out different: the step, the data, or the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from purerun.data import as_loader
from purerun.state import State
from purerun.testing import snapshot
from purerun.testing.broken import LawBroken
from purerun.testing.purity import check_purity


def blame(step: Callable[[State, Any], State], state: State, loader: Any) -> str:
    """Say what makes the iteration after a state different when a run begins there.

    Args:
        step: the step of the run.
        state: the state before the iteration that came out different.
        loader: what the run reads.
    """
    seed, epoch, cursor = (int(state[name]) for name in ("seed", "epoch", "cursor"))
    source = as_loader(loader)
    begun, through = (next(_batches(source, seed, epoch, start, cursor), None) for start in (cursor, 0))
    if snapshot.of_batch(begun) != snapshot.of_batch(through):
        return (
            f"the data are to blame: begun at sample {cursor} of epoch {epoch}, the loader gives another batch than "
            "when it reads the epoch from its start; make its order and augmentation functions of the position"
        )
    try:
        check_purity(step, state, begun, steps=1)
    except LawBroken as broken:
        return f"the step is to blame: {broken}"
    return (
        "the step is pure and the data are the same, so something that influences it is not in the state: "
        "look for a memory in the loader, a hook or a module"
    )


def _batches(source: Any, seed: int, epoch: int, start: int, cursor: int) -> Iterator[Any]:
    """Read an epoch from `start`, and give what comes after sample `cursor`."""
    place = start
    for batch, position in source.read(seed, epoch, start):
        if place >= cursor:
            yield batch
        place = position.cursor
