"""Effects: what a call changes that it should leave alone, and the line that does it."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from purerun.doctor.generators import GLOBAL
from purerun.doctor.lines import Line
from purerun.doctor.looks import same_object
from purerun.doctor.modes import modes_kept
from purerun.doctor.stages import copied
from purerun.doctor.trace import SCOPES, Moment, follow, watch
from purerun.state import State, leaves
from purerun.testing import snapshot


def written(act: Callable[[Any], Any], given: Any) -> dict[str, Line | None]:
    """Find the entries of an argument that a call writes into, and the line that does: path -> line.

    Args:
        act: called with a copy of the argument.
        given: a batch, or any nest of tensors.

    >>> written(lambda batch: batch["x"].mul_(2), {"x": torch.ones(2), "y": torch.ones(2)})
    {'batch/x': None}
    """
    mine, again = copied(given), copied(given)
    before = snapshot.of_batch(mine)
    with modes_kept():
        act(mine)
        names = snapshot.changed(before, snapshot.of_batch(mine))
        lines = watch(lambda: act(again), lambda: snapshot.of_batch(again)) if names else {}
    return {name: lines.get(name) for name in names}


def disturbed(act: Callable[[], Any]) -> dict[str, Line | None]:
    """Find the modes and generators of the process that a call changes: name -> line."""
    with modes_kept():
        before = snapshot.of_process()
        act()
        names = snapshot.changed(before, snapshot.of_process())
    with modes_kept():
        lines = watch(act, snapshot.of_process) if names else {}
    return {name: lines.get(name) for name in names}


def marks() -> dict[str, str]:
    """Say where the global generators stand."""
    return {name: same_object(generator) for name, generator in GLOBAL.items()}


def reseeded(one: Callable[[], Any], other: Callable[[], Any], name: str) -> Line | None:
    """Find the line from which on a generator stands at the same place in two calls that began at other keys."""
    for scope in SCOPES:
        line: Line | None = None
        records = zip(reversed(_places(one, name, scope)), reversed(_places(other, name, scope)), strict=False)
        for (place, done), (elsewhere, _) in records:
            if place != elsewhere:
                break
            line = done
        if line is not None:
            return line
    return None


def _places(act: Callable[[], Any], name: str, scope: Any) -> list[tuple[str, Line | None]]:
    record: list[tuple[str, Line | None]] = []
    with modes_kept():
        follow(act, lambda moment: record.append((same_object(GLOBAL[name]), moment.done)), scope)
    return record


def brought(act: Callable[[], Any], state: State, path: str) -> Line | None:
    """Find the line after which a function first holds, or gives back, a state with another leaf than the one given."""
    wanted = snapshot.of_state(state).get(path)
    lines: list[Line] = []

    def see(moment: Moment) -> None:
        held = [*moment.frame.f_locals.values(), moment.value]
        if moment.done is not None and any(_other(each, path, wanted) for each in held):
            lines.append(moment.done)

    follow(act, see)
    return lines[0] if lines else None


def _other(value: Any, path: str, wanted: str | None) -> bool:
    if not isinstance(value, State):
        return False
    return any("/".join(names) == path for names, _ in leaves(value)) and snapshot.of_state(value).get(path) != wanted


def returned(act: Callable[[], Any], function: Any) -> Line | None:
    """Find the line by which a function gives back its result."""
    lines: list[Line] = []

    def see(moment: Moment) -> None:
        if moment.kind == "return" and moment.done is not None and moment.frame.f_code is function.__code__:
            lines.append(moment.done)

    if not isinstance(function, FunctionType):
        return None
    follow(act, see)
    return lines[-1] if lines else None
