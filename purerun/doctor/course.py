"""The course of an examination: part after part by itself, then what is sound of it together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
from torch import nn

from purerun.data import Loader, Source
from purerun.doctor.finding import RUNS, Examined, Finding, examined, raised
from purerun.doctor.healthy import healthy
from purerun.doctor.hooks import examine_hook, standing
from purerun.doctor.middle import read
from purerun.doctor.model import examine_model
from purerun.doctor.patient import Patient, inner_step
from purerun.doctor.run import examine_run, examine_step, steps
from purerun.doctor.scores import FEWEST, examine_metric, fed
from purerun.doctor.short import smaller
from purerun.doctor.sources import examine_source
from purerun.doctor.stages import copied
from purerun.hooks import Validate
from purerun.recipe import Recipe, RecipeError
from purerun.state import State
from purerun.train import TrainStep
from purerun.wrappers import wrap

_SOURCES = ("train", "val", "test")


class Course:
    """One examination under way: what has been found so far decides on what can come next.

    Args:
        recipe: the recipe, for this machine.
        iters: iterations of the short run.
        workers: worker processes to compare none with.
    """

    def __init__(self, recipe: Recipe, *, iters: int, workers: int) -> None:
        self._iters, self._workers = iters, workers
        self._recipe, self._batches = _fitting(recipe)
        self._done: list[Examined] = []

    def parts(self) -> Iterator[Examined]:
        """Examine the parts."""
        for each in self._parts():
            self._done.append(each)
            yield each

    def _parts(self) -> Iterator[Examined]:
        made = self._made()
        for name in _SOURCES:
            yield from self._source(name)
        if isinstance(made, Finding):
            yield Examined("model", "it is made", (made,))
        elif not self._batches["train"]:
            yield Examined("model", "", skipped="there is no batch of training data")
        else:
            yield from self._treated(*made)

    def _made(self) -> tuple[nn.Module, TrainStep] | Finding:
        """Make the module and its step, or the finding of why there are none."""
        try:
            module = self._recipe.module()
            return module, inner_step(self._recipe.train_step(module))
        except RecipeError:
            raise  # no recipe at all
        except Exception as error:  # noqa: BLE001 - it is told, and the data are examined all the same
            return raised("model", error)

    def _treated(self, module: nn.Module, step: TrainStep) -> Iterator[Examined]:
        judged = self._batches["val"] or self._batches["test"]
        patient = Patient(self._recipe, module, step, self._batches["train"], judged)
        yield from examine_model(patient)
        yield from self._metrics(patient)
        yield from self._hooks(patient)
        yield from self._together(patient)

    def _source(self, name: str) -> Iterator[Examined]:
        recipe, source = self._recipe, getattr(self._recipe, name)
        if source is None or (name == "test" and source == recipe.val):
            return
        # Only a training loop begins in the middle of an epoch, and workers are a matter of each source's own.
        has_workers = isinstance(source, Loader) and source.workers
        workers = self._workers if name == "train" or has_workers else 0
        yield from examine_source(name, source, recipe.seed, workers=workers, middle=name == "train")

    def _metrics(self, patient: Patient) -> Iterator[Examined]:
        if not patient.recipe.metrics:
            return
        try:
            batches = fed(patient)
        except Exception as error:  # noqa: BLE001 - it was told with the forward
            yield Examined("metrics", "", skipped=f"the forward fails: {error}")
            return
        for name, metric in patient.recipe.metrics.items():
            part = f"metrics.{name}"
            if len(batches) < FEWEST:
                yield Examined(part, "", skipped="there are too few samples to merge parts of")
            else:
                checked = f"merged from {len(batches)} small batches"
                yield examined(part, checked, partial(examine_metric, part, metric, batches))

    def _hooks(self, patient: Patient) -> Iterator[Examined]:
        hooks = patient.recipe.train_loop(patient.module).hooks
        try:
            states = standing(self._state(patient), hooks)
        except Exception as error:  # noqa: BLE001 - of a hook's slots: it is told with the run
            yield Examined("hooks", "", skipped=f"their slots cannot be made: {error}")
            return
        for place, hook in enumerate(patient.recipe.hooks):
            # Ours, and made of parts that have been examined.
            if not isinstance(hook, Validate):
                part = f"hooks.{place}"
                yield examined(part, "called twice at two states", partial(examine_hook, part, hook, states))

    def _state(self, patient: Patient) -> State:
        """Make a state with a report: of one step, or stood in for if there can be none."""
        step = wrap(patient.step, *patient.recipe.wrappers)
        state = step.init(patient.recipe.seed)
        if self._sound("model", "loss"):
            return step(state, copied(patient.batches[0]))
        return state.replace(iter=1, metrics={"loss": 1.0, **dict(state["hyper"].items())})

    def _together(self, patient: Patient) -> Iterator[Examined]:
        """Examine steps with their wrappers, then a run of all that is sound."""
        if not self._sound("model", "loss"):
            yield Examined("step", "", skipped="mend the model and the loss first")
            return
        for part, step, suspect in steps(patient):
            each = examined(part, "purity, separateness", partial(examine_step, part, patient, step, suspect))
            yield each
            if not each.is_sound:
                yield Examined("run", "", skipped=f"mend {part} first")
                return
        faulty = [part for part in self._parts_to_leave_out() if not self._sound(part)]
        checked = f"{self._iters} iterations: resumed at each, leased, saved, watched"
        sound = attrs.evolve(patient, recipe=healthy(self._recipe, faulty, self._batches))
        left_out = f"; without {', '.join(faulty)}" if faulty else ""
        whole = examined("run", checked + left_out, partial(examine_run, sound, self._iters))
        if faulty and any(finding.law == RUNS for finding in whole.findings):
            whole = Examined("run", "", skipped=f"mend {', '.join(faulty)} first")
        yield whole

    def _parts_to_leave_out(self) -> list[str]:
        hooks = [f"hooks.{place}" for place in range(len(self._recipe.hooks))]
        return [*_SOURCES, "forward", *hooks, *(f"metrics.{name}" for name in self._recipe.metrics)]

    def _sound(self, *parts: str) -> bool:
        """Say whether no fault has been found in some parts and what is below them."""
        below = tuple(f"{part}." for part in parts)
        return all(each.is_sound for each in self._done if each.part in parts or each.part.startswith(below))


def _fitting(recipe: Recipe) -> tuple[Recipe, dict[str, list[Any]]]:
    """Make a recipe with small batches, unless its model wants those that it has."""
    small = smaller(recipe)
    batches = _recorded(small)
    if batches["train"] and not _takes(small, batches["train"][0]):
        own = _recorded(recipe)
        if own["train"] and _takes(recipe, own["train"][0]):
            return recipe, own
    return small, batches


def _takes(recipe: Recipe, batch: Any) -> bool:
    try:
        # With a module of its own: what a first call changes must be seen later.
        module = recipe.module()
        Patient(recipe, module, inner_step(recipe.train_step(module)), [batch]).compute(copied(batch))
    except Exception:  # noqa: BLE001 - whatever it is: the examination itself tells it
        return False
    return True


def _recorded(recipe: Recipe) -> dict[str, list[Any]]:
    """Read a few batches of each source; none of one that cannot be read."""
    batches: dict[str, list[Any]] = {name: [] for name in _SOURCES}
    for name in _SOURCES:
        source: Source | None = getattr(recipe, name)
        if source is not None:
            with suppress(Exception):  # examining the source tells it
                batches[name] = [batch for batch, _ in read(source, recipe.seed)]
    return batches
