"""Findings: what the doctor has to say about a part of a recipe."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Literal

import attrs

from purerun.doctor.lines import Line, is_own

CHANCE = "order and chance are functions"
SEEK = "a source begins anywhere"
COMPLETE = "completeness"
PURE = "purity"
EDGES = "effects live at the edge"
MONOID = "tallies form a monoid"
GRADIENTS = "every trained parameter has a gradient"
SAMENESS = "how a run is made does not change it"
RUNS = "it runs"

WHY = {
    CHANCE: "batches are functions of (seed, epoch, position): else a run that is resumed, repeated or read by another "
    "number of workers goes on with other data",
    SEEK: "a resumed run begins in the middle of an epoch: else what comes before must be loaded and thrown away, and "
    "be the same again",
    COMPLETE: "what influences the future is in the state: else no checkpoint holds it, and a resumed run goes on "
    "without it",
    PURE: "a step is a function of state and batch: else the same run gives other bits",
    EDGES: "a hook is a function of the state and writes what it declares: else hooks disturb each other, and a "
    "resumed run does not come out the same",
    MONOID: "scores of stretches and of processes are merged: else the score depends on how the data were cut",
    GRADIENTS: "an optimizer moves each of them: one without a gradient is trained by nobody",
    SAMENESS: "leases, workers, sinks and checkpoints change how a run is made, and never its bits",
    RUNS: "what fails here fails in the run",
}
"""Law -> what it is good for."""


@attrs.frozen
class Finding:
    """A fault, or something worth knowing.

    Attributes:
        part: of the recipe, as a path, or "run" for the whole.
        law: the law that does not hold, one of `WHY`.
        message: what is wrong.
        where: `path:line` of the guilty line, `in path:line` of the function or class in which the fault lies, or ""
            where nobody can tell.
        source: what that line says.
        remedy: what to do instead.
        kind: a "fault" breaks a law; a "note" does not.
        line: the same as `where`, for programs.
    """

    part: str
    law: str
    message: str
    where: str = ""
    source: str = ""
    remedy: str = ""
    kind: Literal["fault", "note"] = "fault"
    line: Line | None = attrs.field(default=None, eq=False, repr=False)


@attrs.frozen
class Examined:
    """One part of a recipe, examined.

    Attributes:
        part: of the recipe, as a path, or "run" for the whole.
        checked: what was checked.
        findings: what was found.
        skipped: why it was not examined; "" if it was.
        known: what was found as well, but had been told with another part.
    """

    part: str
    checked: str
    findings: tuple[Finding, ...] = ()
    skipped: str = ""
    known: tuple[Finding, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether no fault was found in it."""
        return all(finding.kind == "note" for finding in (*self.findings, *self.known))


def found(
    part: str, law: str, message: str, line: Line | None, remedy: str, kind: Literal["fault", "note"] = "fault"
) -> Finding:
    """Make a finding of what is said of a line.

    >>> found("train", RUNS, "it fails", None, "mend it").where
    ''
    """
    where, source = ("", "") if line is None else (str(line), line.source)
    return Finding(part, law, message, where, source, remedy, kind, line)


def examined(part: str, checked: str, examine: Callable[[], Iterable[Finding]]) -> Examined:
    """Examine a part; what its code raises is a finding too.

    >>> examined("loss", "it is called", lambda: [1 / 0]).findings[0].message
    'ZeroDivisionError: division by zero'
    """
    findings: list[Finding] = []
    try:
        findings.extend(examine())  # one by one: those before an error stay
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and the other parts are examined
        findings.append(raised(part, error))
    return Examined(part, checked, tuple(findings))


def raised(part: str, error: BaseException) -> Finding:
    """Make the finding of an error: at the innermost line of the user's own."""
    lines = [
        Line(frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if is_own(frame.filename) and frame.lineno
    ]
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return found(part, RUNS, told, lines[-1] if lines else None, "mend this first; the rest of the part is unseen")
