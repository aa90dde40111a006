"""What a sink is: a frozen value that opens into a watcher, which sees the states of one run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import attrs

from purerun.sinks.desk import Desk, Watcher
from purerun.sinks.watched import Watched, joined
from purerun.state import State


@attrs.frozen
class Sink(ABC):
    """A frozen value that watches a run: `sink(states)` hands on the states as they are."""

    keeps: ClassVar[bool] = False
    """Whether it writes down what the others remember: it then sees each state after them."""

    @property
    def label(self) -> str:
        """The name under which a checkpoint keeps its memory."""
        return type(self).__name__

    @property
    def place(self) -> Path | None:
        """The directory that no other process may write into while this one watches; None for no such directory."""
        return None

    @abstractmethod
    def open(self, desk: Desk) -> Watcher:
        """Begin to watch a run.

        Raises:
            SinkError: something is in the way.
        """

    def __call__(self, states: Iterator[State]) -> Watched:
        """Watch a run: `watch(states, sink)`."""
        return joined(states, [self], Desk())
