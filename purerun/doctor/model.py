"""Examining the model and the loss: are they functions of parameters, buffers and batch?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import attrs

from purerun.bind import ModelError
from purerun.doctor.declared import declared
from purerun.doctor.effects import disturbed, reseeded, written
from purerun.doctor.experiment import experiment
from purerun.doctor.finding import CHANCE, GRADIENTS, PURE, Examined, Finding, examined, found, raised
from purerun.doctor.lines import Line, is_inside, own_beginning
from purerun.doctor.modes import modes_kept
from purerun.doctor.patient import Patient
from purerun.doctor.stages import copied
from purerun.doctor.verdicts import to_blame, verdicts
from purerun.grad import LossError


def examine_model(patient: Patient) -> Iterator[Examined]:
    """Examine model and loss together, and tell them apart by the guilty lines; then the forward in evaluation."""
    whole = examined("model", "", lambda: _computed(patient))
    loss = tuple(attrs.evolve(each, part="loss") for each in whole.findings if _is_of_loss(patient, each))
    model = tuple(each for each in whole.findings if not _is_of_loss(patient, each))
    yield Examined("model", "forward and gradients, twice on the same batches", model)
    yield Examined("loss", "what it remembers, writes into and disturbs", loss)
    if patient.judged:
        yield examined("forward", "in evaluation, twice on the same batches", lambda: _judged(patient))


def _computed(patient: Patient) -> Iterator[Finding]:
    def act(batch: Any = None, iter: int = 0) -> Any:
        return patient.compute(copied(patient.batches[0]) if batch is None else batch, iter)

    evidence = experiment(lambda: [*map(act, _two(patient.batches))], [patient.module, patient.part.loss])
    causes = to_blame(evidence)
    yield from verdicts("model", "step", causes, type(patient.module).forward, patient.part.loss)
    yield from writes("model", act, patient.batches[0])
    yield from disturbances("model", act)
    yield from _seeding(patient, act)
    ungraded = [*_ungraded(patient, act)]
    yield from ungraded
    yield from _refused(patient, remembers=any(cause.of_module for cause in causes), ungraded=bool(ungraded))


def _judged(patient: Patient) -> Iterator[Finding]:
    def act(batch: Any = None) -> Any:
        return patient.judge(copied(patient.judged[0]) if batch is None else batch)

    evidence = experiment(lambda: [*map(act, _two(patient.judged))], [patient.module, patient.recipe.forward])
    causes = to_blame(evidence)
    yield from verdicts("forward", "step", causes, type(patient.module).forward, patient.recipe.forward)
    yield from writes("forward", act, patient.judged[0])
    yield from disturbances("forward", act)


def _two(batches: Sequence[Any]) -> list[Any]:
    """Take copies of two batches: what is remembered of one shows beside the other."""
    return [copied(batch) for batch in batches[:2]]


def writes(part: str, act: Callable[[Any], Any], batch: Any) -> Iterator[Finding]:
    """Find what a call writes into its batch."""
    for path, line in written(act, batch).items():
        message = f"writes into the batch that it is given (`{path}`): whoever uses it next gets another one"
        yield found(part, PURE, message, line, "change a copy: x = x.clone(), or an operation without the underscore")


def disturbances(part: str, act: Callable[[], Any]) -> Iterator[Finding]:
    """Find what a call changes in the process."""
    for name, line in disturbed(act).items():
        yield found(part, PURE, f"changes {name}, for everybody", line, "put it back with a `with` block, or leave it")


def _seeding(patient: Patient, act: Callable[..., Any]) -> Iterator[Finding]:
    """Find what starts a global generator anew: its place no longer depends on the key."""
    with modes_kept():
        one, other = act(iter=0).marks, act(iter=1).marks
    for name in one:
        if one[name] == other[name]:
            line = reseeded(partial(act, iter=0), partial(act, iter=1), name)
            message = f"starts {name} anew: what is drawn after it, dropout say, is the same in every iteration"
            line = line or own_beginning(patient.part.loss, patient.module)
            remedy = "leave it out: the step puts the generators at a key of seed and iteration"
            yield found("model", CHANCE, message, line, remedy)


def _ungraded(patient: Patient, act: Callable[..., Any]) -> Iterator[Finding]:
    if patient.part.unused == "zero":
        return
    places: dict[Line | None, list[str]] = {}
    with modes_kept():
        grads = act().grads
    for name, grad in grads.items():
        if grad is None:
            places.setdefault(declared(patient.module, name), []).append(name)
    for line, names in places.items():
        message = f"{', '.join(f'`{name}`' for name in names)} has no gradient: the loss does not depend on it"
        yield found(
            "model", GRADIENTS, message, line, "use it, freeze it with requires_grad_(False), or say unused='zero'"
        )


def _refused(patient: Patient, *, remembers: bool, ungraded: bool) -> Iterator[Finding]:
    """Run the step itself once; what it refuses for a reason that has been told is not told again."""
    step = attrs.evolve(patient.step)  # with a binding of its own, which looks closely at its first run
    try:
        with modes_kept():
            step.grad(step.init(patient.recipe.seed), copied(patient.batches[0]))
    except LossError as error:
        if not ungraded:
            yield raised("loss", error)
    except ModelError as error:
        if not remembers:
            line = own_beginning(type(patient.module).forward, patient.module)
            yield found("model", PURE, str(error), line, "let the forward be a function of its tensors")


def _is_of_loss(patient: Patient, finding: Finding) -> bool:
    """Say whether a finding points into the loss function."""
    loss = patient.part.loss
    while isinstance(loss, partial):
        loss = loss.func
    functions = [loss] if isinstance(loss, FunctionType) else [*vars(type(loss)).values()]
    codes = [each.__code__ for each in functions if isinstance(each, FunctionType)]
    return finding.line is not None and any(is_inside(finding.line, code) for code in codes)
