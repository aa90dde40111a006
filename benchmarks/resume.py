"""What is left of a run that was stopped and resumed: purerun and its peers, each beside its run never stopped.

    python benchmarks/resume.py                             # all that are installed
    python benchmarks/resume.py --only purerun,lightning    # whose names begin so
    python benchmarks/resume.py --scenarios late,kill       # likewise
    python benchmarks/resume.py --quick                     # a small epoch, early and kill only unless others are named
    python benchmarks/resume.py --markdown                  # for a page; --json for programs

Every contestant trains the same network on the same pictures with shuffling, dropout, random augmentation, two
workers and a checkpoint every eight steps, as its own documentation says (see `resuming/contestants`).  Each part of
a run is a process of its own.  The training step notes which samples it is given; where two processes did the same
step, what the later one did counts.  The tables say:

    weights       whether the final weights and buffers have the same bits as those of a run never stopped
    losses        whether all losses are the same, or from which step on they are not
    order         whether every step was given the same samples in the same order
    twice, never  samples that came more than once, and never, in the epoch that was resumed
    done again    steps that were lost, and done more than once
    first batch   from the beginning of the process that resumes, its imports done, to its first batch

"Run again" is a second run that is not stopped either: what differs there is no fault of resuming.  All of it takes ten
minutes on two cores, most of them for imports; --quick takes three.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

import attrs
from resuming.asked import Asked
from resuming.entries import Entry, installed
from resuming.plan import LONG, QUICK, SAMPLES, Scenario, batches, scenarios, seeks
from resuming.runs import Result, contest
from resuming.table import markdown, plain

QUICKEST = "early,kill"


class Named(Protocol):
    """Whatever has a name."""

    name: str


T = TypeVar("T", bound=Named)


def main() -> None:
    """Read the options and run."""
    parser = _parser()
    options = parser.parse_args()
    if options.part:
        from resuming.phase import main as part  # nothing else needs torch

        part(Asked.read(options.part))
        return
    samples = QUICK if options.quick else options.samples
    try:
        wanted = _chosen(options.scenarios or (QUICKEST if options.quick else ""), (*scenarios(samples), *seeks()))
        entries = _chosen(options.only, installed())
    except ValueError as error:
        parser.error(str(error))
    results = []
    for result in _results(entries, samples, wanted):
        print(f"{result.contestant}, {result.scenario.name}: {result.failure or 'done'}", file=sys.stderr)
        results.append(result)
        if options.json:
            print(json.dumps(attrs.asdict(result)), flush=True)
    if not options.json:
        print(_setting(samples, entries), (markdown if options.markdown else plain)(results), sep="\n\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="contestants whose names begin so, set apart by commas")
    parser.add_argument("--scenarios", default="", help="scenarios whose names begin so, set apart by commas")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"of an epoch; {SAMPLES} unless given")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK} samples; {QUICKEST} only, unless others are named"
    )
    parser.add_argument("--markdown", action="store_true", help="tables for a page")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each result")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what this program asks of itself
    return parser


def _chosen(beginnings: str, known: Sequence[T]) -> list[T]:
    """Choose by the beginnings of names; all if none is given.

    Raises:
        ValueError: no name begins so.
    """
    chosen: list[T] = []
    for beginning in beginnings.split(","):
        found = [each for each in known if each.name.lower().startswith(beginning.strip().lower())]
        if not found:
            names = ", ".join(each.name for each in known)
            raise ValueError(f"expected the beginning of a name ({names}), got {beginning!r}")
        chosen += [each for each in found if each not in chosen]
    return chosen


def _results(entries: Sequence[Entry], samples: int, wanted: Sequence[Scenario]) -> Iterator[Result]:
    for entry in entries:
        with tempfile.TemporaryDirectory() as folder:
            yield from contest(entry, samples, wanted, Path(folder))


def _setting(samples: int, entries: Sequence[Entry]) -> str:
    """Say what the figures were taken with."""
    versions = {"torch": version("torch")}
    for entry in entries:
        versions |= entry.versions()
    packages = ", ".join(f"{package} {number}" for package, number in versions.items())
    notes = dict.fromkeys(entry.note for entry in entries if entry.note)
    return "; ".join((packages, f"epochs of {batches(samples)} batches, the long ones of {batches(LONG)}", *notes))


if __name__ == "__main__":
    main()
