"""The course of an examination: part after part by itself, then what is sound of it together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
from torch import nn

from purerun import batch as _batch
from purerun.data import Loader, Source
from purerun.doctor.finding import RUNS, Examined, Finding, examined, raised
from purerun.doctor.healthy import healthy
from purerun.doctor.hooks import examine_hook, standing
from purerun.doctor.middle import read
from purerun.doctor.model import examine_model
from purerun.doctor.patient import Patient, inner_steps
from purerun.doctor.run import examine_run, examine_step, steps
from purerun.doctor.scores import FEWEST, examine_metric, fed
from purerun.doctor.short import smaller
from purerun.doctor.sources import examine_source
from purerun.doctor.stages import copied
from purerun.hooks import Validate
from purerun.metrics import Each
from purerun.recipe import Recipe, RecipeError
from purerun.state import State
from purerun.train import TrainStep

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

    def _made(self) -> tuple[nn.Module, Mapping[str, TrainStep]] | Finding:
        """Make the module, its steps and the first weights, or the finding of why there are none."""
        try:
            module = self._recipe.module()
            self._recipe.init(module)
            return module, inner_steps(self._recipe.train_step(module))
        except RecipeError:
            raise  # no recipe at all
        except Exception as error:  # noqa: BLE001 - it is told, and the data are examined all the same
            return raised("model", error)

    def _treated(self, module: nn.Module, steps: Mapping[str, TrainStep]) -> Iterator[Examined]:
        judged = self._batches["val"] or self._batches["test"]
        patients = {
            name: Patient(self._recipe.alone(name), module, step, self._batches["train"], judged)
            for name, step in steps.items()
        }
        first = next(iter(patients.values()))
        for name, patient in patients.items():
            # The forward that is judged is one for all.
            own = patient if patient is first else attrs.evolve(patient, judged=())
            yield from (each if each.part == "forward" else _of_step(name, each) for each in examine_model(own))
        yield from self._metrics(first)
        yield from self._hooks(module)
        yield from self._together(patients, module)

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
                own = metric.metric if isinstance(metric, Each) else metric  # the outputs are those of one model
                yield examined(part, checked, partial(examine_metric, part, own, batches))

    def _hooks(self, module: nn.Module) -> Iterator[Examined]:
        hooks = self._recipe.train_loop(module).hooks
        try:
            states = standing(self._state(module), hooks)
        except Exception as error:  # noqa: BLE001 - of a hook's slots: it is told with the run
            yield Examined("hooks", "", skipped=f"their slots cannot be made: {error}")
            return
        for place, hook in enumerate(self._recipe.hooks):
            # Ours, and made of parts that have been examined.
            if not isinstance(hook, Validate):
                part = f"hooks.{place}"
                yield examined(part, "called twice at two states", partial(examine_hook, part, hook, states))

    def _state(self, module: nn.Module) -> State:
        """Make a state with a report: of one batch, or stood in for if there can be none."""
        step = self._recipe.train_step(module)
        state = step.init(self._recipe.seed)
        if self._learns():
            return step(state, copied(self._batches["train"][0]))
        report: dict[str, Any] = {}
        for name, part in self._recipe.parts.items():
            start = f"{name}." if name else ""
            report |= {f"{start}{each}": value for each, value in {"loss": 1.0, **part.optimizer.hyper()}.items()}
        return state.replace(iter=1, metrics=report)

    def _learns(self) -> bool:
        """Say whether no fault has been found in the model and in the losses."""
        parts = [_path(name, each) for name in self._recipe.parts for each in ("model", "loss")]
        return self._sound(*parts)

    def _together(self, patients: Mapping[str, Patient], module: nn.Module) -> Iterator[Examined]:
        """Examine steps with their wrappers, then a run of all that is sound."""
        if not self._learns():
            yield Examined("step", "", skipped="mend the model and the loss first")
            return
        for name, patient in patients.items():
            for own, step, suspect in steps(patient):
                part = _path(name, own)
                each = examined(part, "purity, separateness", partial(examine_step, part, patient, step, suspect))
                yield each
                if not each.is_sound:
                    yield Examined("run", "", skipped=f"mend {part} first")
                    return
        faulty = [part for part in self._parts_to_leave_out() if not self._sound(part)]
        checked = f"{self._iters} iterations: resumed at each, leased, saved, watched"
        sound = healthy(self._recipe, faulty, self._batches)
        left_out = f"; without {', '.join(faulty)}" if faulty else ""
        whole = examined("run", checked + left_out, partial(examine_run, sound, module, self._iters))
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
    if batches["train"] and not _takes(small, batches["train"]):
        own = _recorded(recipe)
        if own["train"] and _takes(recipe, own["train"]):
            return recipe, own
    return small, batches


def _path(step: str, part: str) -> str:
    """Say where a part is in a recipe, that of a step with a name too."""
    return f"steps.{step}.{part}" if step else part


def _of_step(step: str, each: Examined) -> Examined:
    found = tuple(attrs.evolve(finding, part=_path(step, finding.part)) for finding in each.findings)
    return attrs.evolve(each, part=_path(step, each.part), findings=found)


def _takes(recipe: Recipe, batches: list[Any]) -> bool:
    """Say whether the model takes batches of these sizes, and its wrappers the parts that they cut them into."""
    try:
        # With a module of its own: what a first call changes must be seen later.
        module = recipe.module()
        learner = recipe.train_step(module)
        for name, step in inner_steps(learner).items():
            Patient(recipe.alone(name), module, step, batches[:1]).compute(copied(batches[0]))
        for each in {_batch.size(batch): batch for batch in batches}.values():
            learner(recipe.init(module), copied(each))
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
