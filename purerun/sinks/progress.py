"""A progress bar for those who watch a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING

import attrs
from torch import Tensor

from purerun.checkpoint import JSON
from purerun.hooks import Every
from purerun.sinks.desk import Desk, Watcher
from purerun.sinks.log import RESERVED, clock
from purerun.sinks.pace import Pace, total
from purerun.sinks.sink import Sink
from purerun.state import State, peek

if TYPE_CHECKING:
    from rich.console import Console


@attrs.frozen
class Progress(Sink):
    """Show a bar on stderr: epoch, iteration, the newest values of the log, the time that is left.

    Nothing is shown where stderr is not a terminal.  Values are those of the newest line of a
    `Log` of the same `watch`, because reading others would make a device wait.

    Attributes:
        total: the end of the run, such as "12 epochs" or 5000 (iterations); None for unknown.
        interval: seconds between two looks.
        console: where to draw, if not on stderr.
    """

    total: Every | None = attrs.field(default=None, converter=total)
    interval: float = attrs.field(default=0.25, kw_only=True, validator=attrs.validators.gt(0.0))
    console: Console | None = attrs.field(default=None, kw_only=True, repr=False)

    def open(self, desk: Desk) -> Watcher:
        """Begin to draw, or to do nothing."""
        if self.console is None and not sys.stderr.isatty():
            return _Nothing()
        from rich.console import Console

        console = self.console or Console(stderr=True)
        return _Drawing(self, desk.board, console) if console.is_interactive else _Nothing()


class _Nothing(Watcher):
    def see(self, state: State) -> None:
        pass


class _Drawing(Watcher):
    def __init__(self, sink: Progress, board: Mapping[str, Mapping[str, JSON]], console: Console) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._sink, self._board = sink, board
        self._pace: Pace | None = None
        self._begun = perf_counter()
        self._next = self._begun
        self._place: tuple[Tensor, Tensor] | None = None
        # Drawn when we say so: a thread of its own would draw while a kernel wants the core.
        self._bar = Bar(
            TextColumn("{task.fields[place]}"),
            BarColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task("", total=None, place="", values="")
        self._bar.start()

    def see(self, state: State) -> None:
        tree = peek(state)
        self._place = tree["epoch"], tree["iter"]
        if perf_counter() >= self._next:
            self._draw(*self._place)

    def close(self, error: BaseException | None) -> None:
        try:
            if self._place is not None:
                self._draw(*self._place)
        finally:
            self._bar.stop()

    def _draw(self, *place: Tensor) -> None:
        now = perf_counter()
        epoch, iter = (int(counter) for counter in place)
        if self._pace is None:
            self._pace = Pace(self._sink.total, (iter - 1, self._begun))
        left = self._pace.look(epoch, iter, now)
        speed = (iter - self._pace.begun[0]) / (now - self._begun)
        self._bar.update(
            self._task,
            total=self._pace.iterations(),
            completed=iter,
            place=f"epoch {epoch}  iter {iter}",
            values="  ".join([*_values(self._board), f"{speed:.3g} iter/s", *([] if left is None else [clock(left)])]),
        )
        self._bar.refresh()
        self._next = perf_counter() + self._sink.interval


def _values(board: Mapping[str, Mapping[str, JSON]]) -> list[str]:
    lines = {**board.get("train", {}), **board.get("val", {})}
    return [f"{name} {value:.4g}" for name, value in lines.items() if name not in RESERVED and isinstance(value, float)]
