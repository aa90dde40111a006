"""Examining data: does a source give the same batches, whoever reads them, when, and from where?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from purerun.data import Foreign, Loader, Source, Stream
from purerun.doctor.experiment import experiment
from purerun.doctor.finding import CHANCE, RUNS, SAMENESS, Examined, Finding, examined, found
from purerun.doctor.generators import GLOBAL
from purerun.doctor.lines import Line, is_own, own_beginning
from purerun.doctor.looks import inside, same_object
from purerun.doctor.middle import BATCHES, begun_in_the_middle, is_spent, iterable, place_of, read, spent
from purerun.doctor.stages import Stage, map_style, stages
from purerun.doctor.trace import watch
from purerun.doctor.verdicts import verdicts
from purerun.testing import LawBroken, check_workers


def examine_source(part: str, source: Source, seed: int, *, workers: int, middle: bool) -> Iterator[Examined]:
    """Examine a source: its functions one by one, then the whole.

    Args:
        part: its path in the recipe.
        source: what is read.
        seed: of the run.
        workers: with how many worker processes to compare none; 0 for no such comparison.
        middle: whether a run may begin to read in the middle of an epoch.
    """
    if is_spent(source):
        yield Examined(part, "how it begins", (spent(part, source),))
        return
    sound = True
    for stage in stages(part, source, seed):
        each = examined(stage.part, "called twice at the same keys", partial(_stage, stage, source))
        sound = sound and each.is_sound
        yield each
        if any(finding.law == RUNS for finding in each.findings):
            break  # the next ones have nothing to work on
    middle = middle and (sound or not isinstance(source, Loader))
    checked = [f"{BATCHES} batches read twice"] * sound + ["begun in the middle"] * middle
    if sound and workers and isinstance(source, Loader):
        checked.append(f"made by 0 and {workers} workers")
    if checked:
        whole = partial(_whole, part, source, seed, sound=sound, workers=workers, middle=middle)
        yield examined(part, ", ".join(checked), whole)


def _stage(stage: Stage, source: Source) -> Iterable[Finding]:
    evidence = experiment(stage.act, [stage.function])
    if evidence.differs:
        subject = "source" if isinstance(source, Stream) and stage.part.endswith(".dataset") else "data"
        yield from verdicts(stage.part, subject, evidence.causes, _method(stage.function), stage.function)
    if not _in_workers(source):
        yield from _notes(stage.part, stage.act)


def _whole(part: str, source: Source, seed: int, *, sound: bool, workers: int, middle: bool) -> Iterator[Finding]:
    """Examine the whole of a source; what its parts explain is not told again."""
    if sound:
        evidence = experiment(lambda: [batch for batch, _ in read(source, seed)], [source])
        if evidence.differs:
            subject = "data" if isinstance(source, Loader) else "source"
            # Of what worker processes draw, this one sees the outcome only.
            drawn = [*_unkeyed(part, source, seed)] if _in_workers(source) else []
            yield from drawn or verdicts(part, subject, evidence.causes, iterable(source))
        sound = not evidence.differs
    if middle:
        yield from begun_in_the_middle(part, source, seed, sound=sound)
    if sound:
        yield from _by_workers(part, source, seed, workers)


def _by_workers(part: str, source: Source, seed: int, workers: int) -> Iterator[Finding]:
    if isinstance(source, Loader) and workers:
        try:
            check_workers(source, workers=(0, workers), seed=seed, epochs=1, batches=BATCHES)
        except LawBroken as broken:
            line = own_beginning(source.transform, _method(source.dataset), source.dataset)
            remedy = "let a sample depend on its index, and on chance from the Loader's key, alone"
            yield found(part, SAMENESS, broken.cause, line, remedy)
    elif _in_workers(source):
        yield from _unkeyed(part, source, seed)


def _in_workers(source: Source) -> bool:
    """Say whether somebody else's worker processes make the samples: no key of ours reaches them."""
    inner = map_style(source)
    return (inner is not None and inner.num_workers > 0) or (isinstance(source, Stream) and source.workers > 0)


def _unkeyed(part: str, source: Source, seed: int) -> Iterator[Finding]:
    """Find draws in worker processes that are not ours."""
    inner = map_style(source)
    if inner is not None:
        alone = copy.copy(inner)
        alone.num_workers, alone.timeout = 0, 0
        given, other = read(source, seed), read(Foreign(alone), seed)
        if inside([batch for batch, _ in given]) == inside([batch for batch, _ in other]):
            return
    lines = {line: name for stage in stages(part, source, seed) for name, line in _draws(stage.act).items()}
    for line, name in lines.items() or ([(place_of(source), "a global generator")] if inner is not None else []):
        message = (
            f"draws from {name} in worker processes, which no key reaches: the batches depend on how many workers "
            "there are"
        )
        yield found(part, CHANCE, message, line, "use pr.Loader(dataset, workers=...), which keys each sample")


def _notes(part: str, act: Callable[[], Any]) -> Iterator[Finding]:
    for name, line in _draws(act).items():
        message = f"draws from {name}, which stands at a key here: pure, but only as long as purerun reads the data"
        remedy = "nothing need be done; a `chance` makes the same draws for a whole batch at once"
        yield found(part, CHANCE, message, line, remedy, kind="note")


def _draws(act: Callable[[], Any]) -> dict[str, Line]:
    """Find the user's own lines that draw from the global generators: generator -> line."""
    return watch(act, lambda: {name: same_object(each) for name, each in GLOBAL.items()}, [is_own])


def _method(dataset: Any) -> Any:
    return getattr(type(dataset), "__getitem__", None)
