"""What a hook is: a frozen function from state to state that writes the slots it declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import attrs

from purerun.hooks.when import When, every
from purerun.state import Draft, State


@attrs.frozen
class Hook(ABC):
    """A function of states that a loop runs after the iterations at which it is due.

    Attributes:
        every: when: "1 epoch", "500 iters", "last", or a `When`.
    """

    every: When = attrs.field(default="1 epoch", kw_only=True, converter=every)

    @property
    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """The top-level entries of the state that this hook may change."""

    @abstractmethod
    def __call__(self, state: State) -> State:
        """Make the state after this hook."""

    def slots(self, state: State) -> Draft:
        """Make the slots that this hook needs, at full shape."""
        return {}

    def start(self, state: State) -> State:
        """Act before the very first iteration of a run."""
        return state

    def due(self, state: State) -> bool:
        """Say whether to act after this iteration."""
        return self.every(state)

    def within(self, epochs: int | None, iters: int | None) -> Self:
        """Learn where the loop ends."""
        return attrs.evolve(self, every=self.every.within(epochs, iters))
