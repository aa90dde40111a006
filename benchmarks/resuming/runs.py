"""The runs of one contestant: part by part, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
from resuming.asked import Asked
from resuming.compare import Outcome, Verdict, verdict
from resuming.entries import Entry
from resuming.plan import EPOCHS, Scenario, batches
from resuming.process import Failed, part
from resuming.tape import Line, read
from safetensors.numpy import load_file


@attrs.frozen
class Result:
    """What became of one scenario.

    Attributes:
        contestant: by name.
        scenario: what was asked for.
        resumed: the step at which each process but the first went on; None if it did no step.
        seconds: from the beginning of each such process, its imports done, to its first batch.
        verdict: how the run compares with one never stopped.
        failure: the runner's message, if something went wrong.
    """

    contestant: str
    scenario: Scenario
    resumed: tuple[int | None, ...] = ()
    seconds: tuple[float | None, ...] = ()
    verdict: Verdict | None = None
    failure: str | None = None


@attrs.define
class Run:
    """A run in the making.

    Attributes:
        scenario: how it is interrupted.
        parts: its processes.
        failure: what went wrong.
    """

    scenario: Scenario
    parts: Sequence[Asked]
    failure: str | None = None

    def do(self, numbers: Iterable[int]) -> None:
        """Do some of its parts, unless something has gone wrong."""
        for number in numbers:
            kill = self.scenario.stops[number] if self.parts[number].doomed is not None else None
            try:
                if self.failure is None:
                    part(self.parts[number], kill=kill)
            except Failed as failed:
                self.failure = str(failed)

    def tapes(self) -> tuple[tuple[Line, ...], ...]:
        """Read what its processes noted."""
        return tuple(tuple(read(each.tape)) for each in self.parts)

    def outcome(self) -> Outcome:
        """Read what became of it."""
        return Outcome(self.tapes(), load_file(self.parts[-1].weights))


def contest(entry: Entry, samples: int, wanted: Sequence[Scenario], folder: Path) -> Iterator[Result]:
    """Let one contestant run: once without a stop, and in each scenario.

    First parts go two by two, since nobody takes their time; a process that resumes has the machine to itself.
    """
    whole = _planned(entry, Scenario("whole", samples), folder / "whole")
    runs = [_planned(entry, each, folder / str(number)) for number, each in enumerate(wanted)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: run.do([0]), [whole, *runs]))
    for run in runs:
        run.do(range(1, len(run.parts)))
        yield _result(entry.name, run, whole)


def _planned(entry: Entry, scenario: Scenario, folder: Path) -> Run:
    last = EPOCHS * batches(scenario.samples) - 1
    ends = scenario.stops if scenario.timed else (*scenario.stops, None)
    parts = [Asked(entry.train, folder, number, scenario.samples, stop=end) for number, end in enumerate(ends)]
    if scenario.kill:
        # It must not be over before it is killed.
        parts[0] = attrs.evolve(parts[0], stop=None, doomed=last)
    return Run(scenario, parts)


def _result(name: str, run: Run, whole: Run) -> Result:
    scenario = run.scenario
    failure = run.failure if scenario.timed else whole.failure or run.failure
    if failure is not None:
        return Result(name, scenario, failure=failure)
    firsts = [tape[0] if tape else None for tape in run.tapes()[1:]]
    return Result(
        name,
        scenario,
        resumed=tuple(first and first.step for first in firsts),
        seconds=tuple(first and first.seconds for first in firsts),
        verdict=None if scenario.timed else verdict(whole.outcome(), run.outcome(), scenario.samples),
    )
