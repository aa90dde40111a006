"""When to save: by the counters of the state, or by the clock, which only sinks may look at."""

from __future__ import annotations

import attrs

from purerun.hooks import When, every
from purerun.state import State
from purerun.valid import above


@attrs.frozen
class Due:
    """Several conditions of which one is enough.

    Attributes:
        whens: those on the state.
        minutes: the longest time between two saves; None for as long as it takes.
    """

    whens: tuple[When, ...] = attrs.field(default=(), converter=tuple)
    minutes: float | None = attrs.field(default=None, validator=attrs.validators.optional(above(0)))

    def __call__(self, state: State, elapsed: float) -> bool:
        """Say whether to save.

        Args:
            state: of this iteration.
            elapsed: seconds since the last save.
        """
        # No generator: asked in every iteration.
        for when in self.whens:
            if when(state):
                return True
        return self.minutes is not None and elapsed >= 60 * self.minutes


def due(given: Due | When | str | int | list[str | int | When] | tuple[str | int | When, ...]) -> Due:
    """Read when to save: what `every` reads, "10 minutes", or several of these.

    >>> due(["1 epoch", "10 minutes"])
    Due(whens=(Every(count=1, unit='epoch', begin=1, offset=0, changes=()),), minutes=10.0)

    Raises:
        ValueError: it is something else.
    """
    if isinstance(given, Due):
        return given
    parts = given if isinstance(given, list | tuple) else (given,)
    clocks = [_minutes(part) for part in parts]
    whens = tuple(_when(part) for part, minutes in zip(parts, clocks, strict=True) if minutes is None)
    return Due(whens, min((minutes for minutes in clocks if minutes is not None), default=None))


def _minutes(spec: When | str | int) -> float | None:
    match str(spec).split():
        case [count, "minute" | "minutes"] if count.replace(".", "", 1).isdecimal():
            return float(count)
    return None


def _when(spec: When | str | int) -> When:
    try:
        return every(spec)
    except ValueError as error:
        raise ValueError(str(error).replace('"last"', '"10 minutes", "last"')) from error
