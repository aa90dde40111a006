"""The results as tables: for a terminal, or for a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO

from resuming.compare import Verdict
from resuming.runs import Result
from rich.console import Console
from rich.table import Table

LINES = ("weights", "losses", "order", "twice, never", "done again", "first batch")


def plain(results: Sequence[Result]) -> str:
    """Draw tables: a contestant a row, a scenario a column."""
    console = Console(file=StringIO(), width=150)
    for part in _parts(results):
        table = Table("", "", *_names(part), show_lines=True)
        for contestant, row in _grid(part).items():
            names = LINES[-1:] if row[0].scenario.timed else LINES
            table.add_row(contestant, "\n".join(names), *("\n".join(_lines(each)) for each in row))
        console.print(table)
    return "\n".join((console.file.getvalue().rstrip(), *_failures(results)))


def markdown(results: Sequence[Result]) -> str:
    """Write tables in Markdown; slashes stand for the lines of a cell."""
    tables = []
    for part in _parts(results):
        head = [" / ".join(LINES) if not part[0].scenario.timed else LINES[-1], *_names(part)]
        rows = [[name, *(" / ".join(_lines(each)) for each in row)] for name, row in _grid(part).items()]
        tables.append("\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)))
    return "\n\n".join((*tables, *_failures(results)))


def _parts(results: Sequence[Result]) -> list[list[Result]]:
    """Set apart what was compared and what was only timed."""
    parts = [[each for each in results if each.scenario.timed is timed] for timed in (False, True)]
    return [part for part in parts if part]


def _names(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(result.scenario.name for result in results))


def _grid(results: Iterable[Result]) -> dict[str, list[Result]]:
    grid: dict[str, list[Result]] = {}
    for result in results:
        grid.setdefault(result.contestant, []).append(result)
    return grid


def _failures(results: Iterable[Result]) -> list[str]:
    return [f"{each.contestant}, {each.scenario.name}: {each.failure}" for each in results if each.failure]


def _lines(result: Result) -> list[str]:
    if result.failure is not None:
        return [result.failure.partition(":")[0]]  # all of it is said below
    if result.verdict is None:
        return [", ".join(map(_seconds, result.seconds)) + _elsewhere(result)]
    return [*_compared(result.verdict), ", ".join(map(_seconds, result.seconds)) or "-"]


def _compared(verdict: Verdict) -> list[str]:
    return [
        "equal" if verdict.weights else f"differ by {verdict.difference:.1g}",
        "equal" if verdict.losses is None else f"part at {verdict.losses}",
        "equal" if verdict.order else "other",
        f"{verdict.twice}, {verdict.never}",
        f"{verdict.again}",
    ]


def _seconds(seconds: float | None) -> str:
    return "none came" if seconds is None else f"{seconds:.2f} s"


def _elsewhere(result: Result) -> str:
    """Say so when a run was not resumed where it was stopped."""
    return "" if result.resumed[:1] == result.scenario.stops[:1] else f", at batch {result.resumed[0]}"
