"""Moments at which to strike a run: some at random, some when the disk shows what it is doing."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import attrs

from tests.faults.commands import Command
from tests.faults.runs import Run, changed


@attrs.frozen
class Moment:
    """When to strike: so many seconds after something has changed so many times."""

    watched: Callable[[Run], object]
    changes: int
    delay: float

    def come(self, command: Command, run: Run) -> bool:
        """Wait for it; say whether it came before the command ended."""
        looks = [self.watched(run)]

        def seen() -> bool:
            # Nothing is no change: of a save that is over there is nothing to be seen.
            if (look := self.watched(run)) and look != looks[-1]:
                looks.append(look)
            return len(looks) > self.changes

        return command.until(seen) and not command.ended(self.delay)


def any_time(dice: Random) -> Moment:
    return Moment(lambda run: None, 0, dice.uniform(0, 0.4))


def starting(dice: Random) -> Moment:
    """Before there is a checkpoint, or while one is read."""
    return Moment(lambda run: None, 0, dice.uniform(0, 0.1))


def going_on(dice: Random) -> Moment:
    """The checkpoint has been read, and nothing new has been written."""
    return Moment(lambda run: changed(run.directory / "recipe.toml"), 1, dice.uniform(0, 0.02))


def saving(dice: Random) -> Moment:
    """Each file that a save begins is a change."""
    return Moment(lambda run: run.unfinished, dice.randint(1, 16), dice.uniform(0, 0.001))


def pointing(dice: Random) -> Moment:
    return Moment(lambda run: changed(run.folder / "last"), dice.randint(1, 5), dice.uniform(0, 0.001))


# Each with the share of strikes that come at such a moment.
_SHARES = {any_time: 4, starting: 1, going_on: 2, saving: 11, pointing: 2}


def drawn(dice: Random) -> Moment:
    """Draw a moment, and say of which kind it is."""
    (kind,) = dice.choices([*_SHARES], [*_SHARES.values()])
    moment = kind(dice)
    print(f"  {kind.__name__}: after {moment.changes} changes and {moment.delay:.4f} s")
    return moment
