"""Examining the step with its wrappers, and a short run as a whole: everything that only shows when parts meet."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from purerun.doctor.experiment import experiment
from purerun.doctor.finding import COMPLETE, PURE, SAMENESS, Finding, found
from purerun.doctor.lines import own_beginning
from purerun.doctor.patient import Patient
from purerun.doctor.short import near_the_end, shorter
from purerun.doctor.verdicts import to_blame, verdicts
from purerun.loop import TrainLoop
from purerun.recipe import Recipe
from purerun.sinks import Checkpoint, Log, watch
from purerun.state import State
from purerun.step import Step
from purerun.testing import (
    LawBroken,
    check_fresh_tensors,
    check_purity,
    check_resume,
    check_shape_constancy,
    check_sinks_change_nothing,
    check_values_equal_lease,
    saved,
    snapshot,
)
from purerun.wrappers import wrap

_LAWS = {"purity": PURE, "separateness of states": PURE, "resume": COMPLETE, "constancy of shapes": COMPLETE}

_BEFORE_THE_END = 2
"""Iterations before an epoch's end at which a short run begins."""


def examine_step(part: str, patient: Patient, step: Step, suspect: Any) -> Iterator[Finding]:
    """Examine a step by itself.

    Args:
        part: its path in the recipe.
        patient: the recipe and a batch.
        step: the step.
        suspect: what in it has not been examined before: a wrapper, or an optimizer.
    """
    state, batch = step.init(patient.recipe.seed), patient.batches[0]
    causes = to_blame(experiment(lambda: step(state, batch), [suspect]))
    yield from verdicts(part, "step", causes, suspect)
    if causes:
        return
    checks = (partial(check, step, state, batch) for check in (check_purity, check_fresh_tensors))
    yield from (_finding(part, broken, suspect) for broken in _broken(checks))


def steps(patient: Patient) -> Iterator[tuple[str, Step, Any]]:
    """List the steps to examine: with the user's own optimizer or wrappers, each by itself, and the whole."""
    part = patient.part
    if _is_own(part.optimizer):
        yield "optimizer", patient.step, part.optimizer
    for place, wrapper in enumerate(part.wrappers):
        if _is_own(wrapper):
            yield f"wrappers.{place}", wrap(patient.step, *part.wrappers[: place + 1]), wrapper
    yield "step", wrap(patient.step, *part.wrappers), None


def examine_run(recipe: Recipe, module: nn.Module, iters: int) -> Iterator[Finding]:
    """Examine a short run: across an epoch's end where that is cheap, with hooks, validation and checkpoints.

    Args:
        recipe: without the parts that are known to be faulty.
        module: its model.
        iters: how many iterations.
    """
    recipe = shorter(recipe, iters)
    loop, loader = recipe.train_loop(module), recipe.train
    state = near_the_end(loader, loop.step.init(recipe.seed), _BEFORE_THE_END)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory() as folder:
        broken = [*_broken(_checks(recipe, loop, state, Path(folder)))]
    if not broken:
        return
    evidence = experiment(lambda: [snapshot.of_state(each) for each in loop(state, loader)], [recipe, module])
    causes = to_blame(evidence)
    yield from verdicts("run", "step", causes)
    if not causes:
        yield from (_finding("run", each, None) for each in broken)


def _broken(checks: Iterable[Callable[[], None]]) -> Iterator[LawBroken]:
    for check in checks:
        try:
            check()
        except LawBroken as broken:
            yield broken


def _checks(recipe: Recipe, loop: TrainLoop, state: State, folder: Path) -> list[Callable[[], None]]:
    loader = recipe.train

    def again() -> tuple[TrainLoop, Any]:
        return recipe.train_loop(recipe.module()), loader

    def watching(states: Iterator[State]) -> Iterator[State]:
        place = Path(tempfile.mkdtemp(dir=folder))
        sinks = Log(every=2, path=place / "log.jsonl", console=False), Checkpoint(place, every="3 iters")
        return watch(states, *sinks)

    return [
        lambda: check_shape_constancy(loop, state, loader),
        lambda: check_values_equal_lease(loop, state, loader),
        lambda: check_resume(loop, state, loader, through=saved(folder / "checkpoint"), again=again),
        lambda: check_sinks_change_nothing(loop, state, loader, watching),
    ]


def _finding(part: str, broken: LawBroken, suspect: Any) -> Finding:
    remedy = "look at what this leaf is made of" if broken.leaf else "look at what the parts share"
    return found(part, _LAWS.get(broken.law, SAMENESS), str(broken), own_beginning(suspect), remedy)


def _is_own(value: Any) -> bool:
    return not type(value).__module__.startswith("purerun.")
