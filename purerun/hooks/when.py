"""When to act: frozen functions from a state to yes or no.

They read the counters only, so they say the same after any resume.  `|`, `&` and `~`
join them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Self, TypeAlias

import attrs

from purerun.state import State, peek
from purerun.valid import one_of, whole

Unit: TypeAlias = Literal["epoch", "iter"]


@attrs.frozen
class When(ABC):
    """A condition on a state."""

    @abstractmethod
    def __call__(self, state: State) -> bool:
        """Say whether it holds after this iteration."""

    def within(self, epochs: int | None, iters: int | None) -> When:
        """Learn where the loop ends."""
        return self

    def __or__(self, other: When) -> When:
        return Any((self, other))

    def __and__(self, other: When) -> When:
        return All((self, other))

    def __invert__(self) -> When:
        return Not(self)


@attrs.frozen
class Every(When):
    """Every n epochs or iterations, from a first one on.

    Attributes:
        count: how many of the unit lie between two times.
        unit: "epoch" or "iter".
        begin: the first epoch or iteration (counted from 1) at which it may hold.
        offset: where counting begins; with begin=b and offset=b it is MMEngine's `save_begin=b`, so
            `Every(5, begin=3, offset=3)` holds after 3, 8, 13, ...
        changes: `(milestone, count)` pairs, as MMEngine's `dynamic_intervals`: the pair with the
            last milestone m rules from the check after m - 1 finished ones on, so
            `Every(5, "epoch", changes=[(11, 2)])` holds after 5, 10, 12, 14, ...

    >>> from purerun.testing.states import counted
    >>> [n for n in range(1, 13) if Every(5, "epoch", changes=[(11, 2)])(counted(epoch=n))]
    [5, 10, 12]
    """

    count: int = attrs.field(validator=whole(1))
    unit: Unit = attrs.field(default="epoch", validator=one_of("epoch", "iter"))
    begin: int = 1
    offset: int = 0
    changes: tuple[tuple[int, int], ...] = attrs.field(
        default=(), converter=lambda given: tuple(sorted((int(m), int(n)) for m, n in given))
    )

    @changes.validator
    def _counts(self, attribute: attrs.Attribute[Any], changes: tuple[tuple[int, int], ...]) -> None:
        for _, count in changes:
            whole(1)(self, attribute, count)

    def __call__(self, state: State) -> bool:
        """Say whether the counter of the unit has just become a multiple of the interval in force."""
        done = _finished(state, self.unit)
        if done is None or done < self.begin:
            return False
        interval = self.count
        for milestone, count in self.changes:
            if done >= milestone - 1:
                interval = count
        return (done - self.offset) % interval == 0


@attrs.frozen
class At(When):
    """At given epochs or iterations.

    >>> from purerun.testing.states import counted
    >>> [n for n in range(1, 6) if At((2, 5), "iter")(counted(iter=n))]
    [2, 5]
    """

    counts: tuple[int, ...] = attrs.field(converter=tuple)
    unit: Unit = attrs.field(default="epoch", validator=one_of("epoch", "iter"))

    def __call__(self, state: State) -> bool:
        """Say whether the counter of the unit has just reached one of them."""
        return _finished(state, self.unit) in self.counts


@attrs.frozen
class Last(When):
    """After the loop's very last iteration.  The loop says where that is."""

    epochs: int | None = None
    iters: int | None = None

    def within(self, epochs: int | None, iters: int | None) -> Self:
        """Learn where the loop ends."""
        return attrs.evolve(self, epochs=epochs, iters=iters)

    def __call__(self, state: State) -> bool:
        """Say whether the loop ends here."""
        if self.epochs is not None:
            return _finished(state, "epoch") == self.epochs
        return self.iters is not None and int(state["iter"]) >= self.iters


@attrs.frozen
class Any(When):
    """When one of several conditions holds."""

    parts: tuple[When, ...]

    def within(self, epochs: int | None, iters: int | None) -> Self:
        """Learn where the loop ends."""
        return attrs.evolve(self, parts=tuple(part.within(epochs, iters) for part in self.parts))

    def __call__(self, state: State) -> bool:
        """Say whether one holds."""
        return any(part(state) for part in self.parts)


@attrs.frozen
class All(When):
    """When all of several conditions hold."""

    parts: tuple[When, ...]

    def within(self, epochs: int | None, iters: int | None) -> Self:
        """Learn where the loop ends."""
        return attrs.evolve(self, parts=tuple(part.within(epochs, iters) for part in self.parts))

    def __call__(self, state: State) -> bool:
        """Say whether all hold."""
        return all(part(state) for part in self.parts)


@attrs.frozen
class Not(When):
    """When a condition does not hold."""

    part: When

    def within(self, epochs: int | None, iters: int | None) -> Self:
        """Learn where the loop ends."""
        return attrs.evolve(self, part=self.part.within(epochs, iters))

    def __call__(self, state: State) -> bool:
        """Say whether it does not hold."""
        return not self.part(state)


def every(spec: When | str | int) -> When:
    """Read a condition: "1 epoch", "500 iters", "last", a number of iterations, or a `When`.

    >>> every("2 epochs"), every("last")
    (Every(count=2, unit='epoch', begin=1, offset=0, changes=()), Last(epochs=None, iters=None))

    Raises:
        ValueError: the text says neither.
    """
    if isinstance(spec, When):
        return spec
    if isinstance(spec, int) and not isinstance(spec, bool):
        return Every(spec, "iter")
    if spec == "last":
        return Last()
    units: dict[str, Unit] = {"epoch": "epoch", "epochs": "epoch", "iter": "iter", "iters": "iter"}
    match str(spec).split():
        case [count, unit] if count.isdigit() and int(count) and unit in units:
            return Every(int(count), units[unit])
    raise ValueError(f'expected something like "1 epoch", "500 iters", "last" or a When, got {spec!r}')


def _finished(state: State, unit: Unit) -> int | None:
    """Count finished units if one has just been finished."""
    counters = peek(state)
    if unit == "iter":
        return counters["iter"].item()
    return counters["epoch"].item() if not counters["cursor"].item() else None
