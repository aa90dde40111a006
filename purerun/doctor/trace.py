"""Following a call line by line: what is seen, and which line has just been executed, where the code is the user's.

Nothing is known of what happens between two such lines but what can be seen after it; so a change that
is noticed at a moment is the work of the line that was executed last.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from purerun.doctor.lines import Line, Scope, is_own, is_theirs

# Code that goes on for longer is let go: to look at each line of it would take minutes.
_MOMENTS = 20_000


class Moment(NamedTuple):
    """One moment of a call, between two lines.

    Attributes:
        frame: the function that is being executed, with its local names.
        kind: "call" (it begins, or a generator goes on), "line" (a line is next) or "return".
        value: what it gives back.
        done: the line that was executed last, of this function or of its caller; None where it was called by
            somebody else's code.
    """

    frame: FrameType
    kind: str
    value: Any
    done: Line | None


def follow(act: Callable[[], Any], see: Callable[[Moment], None], scope: Scope = is_own) -> Any:
    """Call something, and show each moment of the code that is of interest.

    Args:
        act: what to call.
        see: is shown each moment, up to some thousands of them; what it calls is not followed.
        scope: which files are of interest.

    >>> def double(x):
    ...     y = 2 * x
    ...     return y
    >>> kinds = []
    >>> follow(lambda: double(2), lambda moment: kinds.append(moment.kind), scope=lambda file: "doctest" in file)
    4
    >>> kinds
    ['call', 'line', 'call', 'line', 'line', 'return', 'return']
    """
    before = sys.gettrace()
    sys.settrace(_Follower(see, scope).enter)
    try:
        return act()
    finally:
        sys.settrace(before)


class _Follower:
    """Knows the line at which each function stands, the innermost last."""

    def __init__(self, see: Callable[[Moment], None], scope: Scope) -> None:
        self._see, self._scope = see, scope
        self._standing: list[tuple[FrameType, Line | None]] = []
        self._asleep: dict[FrameType, Line | None] = {}
        self._left = _MOMENTS

    def enter(self, frame: FrameType, _kind: str, _value: Any) -> Any:
        if not self._left or not self._scope(frame.f_code.co_filename):
            return None
        caller = self._standing[-1][1] if self._standing else None
        self._show(Moment(frame, "call", None, caller))
        self._standing.append((frame, self._asleep.pop(frame, caller)))
        return self.go_on

    def go_on(self, frame: FrameType, kind: str, value: Any) -> Any:
        # A generator that is closed may come back without having been called.
        _, done = self._standing.pop() if self._standing and self._standing[-1][0] is frame else (frame, None)
        if kind in ("line", "return"):
            self._show(Moment(frame, kind, value if kind == "return" else None, done))
        if kind == "line":
            done = Line(frame.f_code.co_filename, frame.f_lineno)
        if kind != "return":
            self._standing.append((frame, done))
        elif frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
            self._asleep[frame] = done
        return self.go_on

    def _show(self, moment: Moment) -> None:
        if self._left:
            self._left -= 1
            self._see(moment)


SCOPES: tuple[Scope, ...] = (is_own, is_theirs)
"""The user's own lines come first; where none of them is to blame, those of installed packages are looked at."""


def watch(
    act: Callable[[], Any], looks: Callable[[], Mapping[str, str]], scopes: Sequence[Scope] = SCOPES
) -> dict[str, Line]:
    """Find the line that first changes each of some things: name -> line.

    Args:
        act: what to call; once for each scope, until lines are found.
        looks: how the things look now: name -> text.
        scopes: which files are of interest, the most interesting first.

    >>> calls = []
    >>> def counted():
    ...     calls.append(1)
    >>> watch(counted, lambda: {"calls": str(calls)}, [lambda file: "doctest" in file])["calls"].number
    2
    """
    for scope in scopes:
        if found := _watched(act, looks, scope):
            return found
    return {}


def _watched(act: Callable[[], Any], looks: Callable[[], Mapping[str, str]], scope: Scope) -> dict[str, Line]:
    found: dict[str, Line] = {}
    before = looks()

    def see(moment: Moment) -> None:
        nonlocal before
        now = looks()
        # What has changed while somebody else's code ran is nobody's line here.
        if moment.done is not None:
            for name in {**before, **now}:
                if before.get(name) != now.get(name):
                    found.setdefault(name, moment.done)
        before = now

    follow(act, see, scope)
    return found
