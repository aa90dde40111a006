"""Experiments: is a call a function of its arguments, and if not, which line is to blame?

The call is made twice.  What it has changed between is put back, which makes it the same again if, and only if,
that is what the result hung on; so what is blamed is blamed on evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import attrs

from purerun.doctor.generators import kind_of
from purerun.doctor.lines import Line, Scope
from purerun.doctor.looks import inside, outside
from purerun.doctor.memory import Memory, look, remembered
from purerun.doctor.modes import modes_kept
from purerun.doctor.spots import Spot
from purerun.doctor.trace import SCOPES, Moment, follow, watch

# With more suspects than this, only generators are tried one by one.
_SUSPECTS = 24


@attrs.frozen
class Cause:
    """What makes a call more than a function, or less.

    Attributes:
        kind: a "generator" of chance that moves, a "memory" that changes, or "fresh": something that is new at each
            call, such as the time, or a generator without a seed.
        name: of the generator or the memory.
        line: that moves or changes it, or after which two calls part.
        of_module: whether it is a plain attribute of an nn.Module.
        always: whether each call changes it; if not, only the first one did.
    """

    kind: Literal["generator", "memory", "fresh"]
    name: str = ""
    line: Line | None = None
    of_module: bool = False
    always: bool = True


@attrs.frozen
class Evidence:
    """What an experiment has shown.

    Attributes:
        differs: whether the second call gave other bits than the first.
        causes: why.
        idle: what the calls have changed besides, with no effect on the result that showed.
    """

    differs: bool
    causes: tuple[Cause, ...] = ()
    idle: tuple[Cause, ...] = ()


def experiment(act: Callable[[], Any], roots: Iterable[Any]) -> Evidence:
    """Find out whether a call gives the same again, and what it changes.

    Args:
        act: what to call, with the same arguments each time, and with the global generators at the same key.
        roots: the functions and objects that are called, from which all that they can change is found.

    >>> import itertools
    >>> experiment(lambda: [1, 2], [])
    Evidence(differs=False, causes=(), idle=())
    >>> [cause.kind for cause in experiment(itertools.count().__next__, []).causes]
    ['fresh']
    """
    memory = remembered(roots)

    def result() -> str:
        with modes_kept():
            return inside(act())

    first = result()
    touched = memory.changed()
    same = result() == first
    again = {*watch(result, lambda: {spot.key: look(spot) for spot in touched})} if touched else set()

    def matters(some: Sequence[Spot]) -> bool:
        memory.put_back(some)
        return result() == first

    guilty: list[Spot] = []
    fresh: tuple[Cause, ...] = ()
    if not same and matters(touched):
        guilty = _needed(touched, matters)
    elif not same:
        guilty = [spot for spot in touched if kind_of(spot.get()) is not None]
        fresh = (Cause("fresh", line=parting(act, before=lambda: memory.put_back(touched))),)
    causes = {spot.key: cause for spot, cause in zip(touched, _causes(act, memory, touched, again), strict=True)}
    blamed = tuple(causes[spot.key] for spot in guilty)
    return Evidence(not same, (*blamed, *fresh), tuple(each for each in causes.values() if each not in blamed))


def _needed(touched: list[Spot], matters: Callable[[Sequence[Spot]], bool]) -> list[Spot]:
    """Leave out what need not be put back for the call to give the same again."""
    needed = touched
    for spot in touched[:_SUSPECTS]:
        without = [each for each in needed if each is not spot]
        if without and matters(without):
            needed = without
    return needed


def _causes(act: Callable[[], Any], memory: Memory, some: Sequence[Spot], again: set[str]) -> tuple[Cause, ...]:
    """Find the lines that change some spots, in a call that begins as the first one did."""
    if not some:
        return ()

    def anew() -> Any:
        memory.put_back(some)
        with modes_kept():
            return act()

    lines = watch(anew, lambda: {spot.key: look(spot) for spot in some})
    return tuple(
        Cause(
            "memory" if kind_of(spot.get()) is None else "generator",
            spot.name,
            lines.get(spot.key),
            of_module=spot.of_module,
            always=spot.key in again,
        )
        for spot in some
    )


def parting(act: Callable[[], Any], *, before: Callable[[], Any] = lambda: None) -> Line | None:
    """Find the line after which two calls first differ: in their local names, or in what comes next.

    Args:
        act: what to call.
        before: what to do before each call.
    """
    for scope in SCOPES:
        before()
        one = _recorded(act, scope)
        before()
        two = _recorded(act, scope)
        for (look_, _), (other, line) in zip(one, two, strict=False):
            if look_ != other:
                return line
    return None


def _recorded(act: Callable[[], Any], scope: Scope) -> list[tuple[str, Line | None]]:
    record: list[tuple[str, Line | None]] = []

    def see(moment: Moment) -> None:
        code = moment.frame.f_code
        # What a function is closed over is no doing of its lines.
        own = {name: value for name, value in moment.frame.f_locals.items() if name not in code.co_freevars}
        looks = f"{code.co_filename}:{moment.frame.f_lineno} {moment.kind} {outside(own)} {outside(moment.value)}"
        record.append((looks, moment.done))

    with modes_kept():
        follow(act, see, scope)
    return record
