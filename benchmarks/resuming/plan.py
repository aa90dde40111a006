"""What is run: the sizes of the task, and where each scenario stops it."""

from __future__ import annotations

import attrs

SEED, EPOCHS, BATCH, WORKERS = 0, 3, 16, 2
EVERY = 8
"""Steps from one checkpoint to the next, for every contestant."""

SAMPLES, QUICK, LONG = 1024, 384, 6400
"""Samples of an epoch: as a rule, with `--quick`, and where the cost of a place late in a long epoch is asked for."""


@attrs.frozen
class Scenario:
    """How a run is interrupted.

    Attributes:
        name: of its column.
        samples: of an epoch.
        stops: finished steps after which a process ends; the next process resumes.
        kill: the process does not end by itself: its group is killed once the step is done.
        timed: only the time to the first batch is asked for: the run is over at its last stop.
    """

    name: str
    samples: int
    stops: tuple[int, ...] = ()
    kill: bool = attrs.field(default=False, kw_only=True)
    timed: bool = attrs.field(default=False, kw_only=True)


def scenarios(samples: int) -> tuple[Scenario, ...]:
    """Place the stops in the second of three epochs."""
    epoch = batches(samples)
    early, late = epoch + EVERY, 2 * epoch - EVERY
    return (
        Scenario("run again", samples),
        Scenario("early", samples, (early,)),
        Scenario("late", samples, (late,)),
        Scenario("epoch's end", samples, (2 * epoch,)),
        Scenario("twice", samples, (early, late)),
        # Not at a checkpoint: what was done since the last one is lost, and done again.
        Scenario("kill -9", samples, (epoch + epoch // 2 + 3,), kill=True),
    )


def seeks() -> tuple[Scenario, ...]:
    """Stop at the start and at the end of a long epoch; what resumes does a single step."""
    places = EVERY, batches(LONG) - EVERY
    return tuple(Scenario(f"batch {place}", LONG, (place, place + 1), timed=True) for place in places)


def batches(samples: int) -> int:
    """Count the batches of an epoch.

    Raises:
        ValueError: checkpoints would not fall on the end of an epoch, or there is no room for two stops in one.
    """
    if samples % (BATCH * EVERY) or samples < 3 * BATCH * EVERY:
        raise ValueError(f"expected a multiple of {BATCH * EVERY} samples, at least {QUICK}, got {samples}")
    return samples // BATCH
