"""The report: what was examined and found, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from purerun.doctor.finding import WHY, Examined, Finding


def told(each: Examined) -> str:
    r"""Say what was examined, on a line of its own, and what faults were found.

    >>> print(told(Examined("loss", "called twice")), end="")
    ok     loss: called twice
    """
    if each.skipped:
        return f"skip   {each.part}: {each.skipped}\n"
    faults = "".join(_finding(finding, "       ") for finding in each.findings if finding.kind == "fault")
    known = "".join(f"       as above: {finding.where}\n" for finding in each.known if finding.kind == "fault")
    return f"{'ok   ' if each.is_sound else 'FAULT'}  {each.part}: {each.checked}\n{faults}{known}"


def summary(every: Sequence[Examined]) -> str:
    """Say the notes, and how many faults there are.

    >>> print(summary([Examined("loss", "called twice")]), end="")
    <BLANKLINE>
    no fault in 1 part
    """
    notes = _of_kind(every, "note")
    text = "".join(f"note   {note.part}\n{_finding(note, '       ')}" for note in notes)
    faults = len(_of_kind(every, "fault"))
    count = "no fault" if not faults else "1 fault" if faults == 1 else f"{faults} faults"
    return f"\n{text}{count} in {len(every)} part{'s' * (len(every) != 1)}\n"


def _of_kind(every: Iterable[Examined], kind: str) -> list[Finding]:
    return [finding for each in every for finding in each.findings if finding.kind == kind]


def _finding(finding: Finding, indent: str) -> str:
    where = f"{finding.where}: {finding.source}" if finding.where else "which line it is cannot be told"
    lines = [finding.message, where, f"why: {WHY[finding.law]} ({finding.law})", f"do:  {finding.remedy}"]
    return "".join(f"{indent}{line}\n" for line in lines)
