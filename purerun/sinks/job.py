"""A checkpoint that is to be written: a state in the hands of another thread, and what else it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from purerun.checkpoint import JSON
from purerun.loan import Loan
from purerun.state import Draft, State, leaves, seal, unseal


@attrs.frozen
class Job:
    """One checkpoint to be written: all that it takes, and nothing that the run changes.

    Attributes:
        iter: of the state.
        draft: the state, with nothing in its places.
        paths: its places.
        loan: what belongs there.
        memory: what the sinks remember.
        scores: those of all checkpoints, this one's too.
    """

    iter: int
    draft: Draft
    paths: tuple[tuple[str, ...], ...]
    loan: Loan
    memory: dict[str, JSON]
    scores: dict[str, Mapping[str, Any]]

    @classmethod
    def of(cls, state: State, memory: dict[str, JSON], scores: dict[str, Mapping[str, Any]]) -> Job:
        """Lend a state to the thread that writes."""
        draft = unseal(state)
        paths, tensors = zip(*leaves(draft), strict=True)
        for path in paths:
            _put(draft, path, None)
        return cls(int(state["iter"]), draft, paths, Loan(tensors), memory, scores)

    def state(self) -> State:
        """Copy the state into memory of its own; what is copied while the run is busy the run need not copy."""
        for path, copy in zip(self.paths, self.loan.copies(), strict=True):
            _put(self.draft, path, copy)
        return seal(self.draft)


def _put(draft: Draft, path: tuple[str, ...], leaf: Tensor | None) -> None:
    for name in path[:-1]:
        draft = draft[name]
    draft[path[-1]] = leaf
