"""How far a run is: its total, told in iterations or epochs, as iterations."""

from __future__ import annotations

import attrs

from purerun.hooks import Every, every


def total(spec: str | int | None) -> Every | None:
    """Read a total: "12 epochs", "5000 iters", a number of iterations, or None for unknown.

    >>> total("12 epochs"), total(None)
    (Every(count=12, unit='epoch', begin=1, offset=0, changes=()), None)

    Raises:
        ValueError: it is something else.
    """
    if spec is None:
        return None
    read = every(spec)
    if not isinstance(read, Every):
        raise ValueError(f'expected a total such as "12 epochs" or 5000, got {spec!r}')
    return read


@attrs.define
class Pace:
    """What has been seen of a run's speed.

    A total in epochs becomes one in iterations when the run is first seen in another epoch
    than before; until then how long an epoch is cannot be known.

    Attributes:
        total: the end of the run.
        begun: the iteration and the seconds on the clock when watching began.
    """

    total: Every | None
    begun: tuple[int, float]
    _epoch: int | None = None
    _length: float | None = None

    def look(self, epoch: int, iter: int, now: float) -> float | None:
        """Estimate the seconds that are left, from all iterations since watching began."""
        if self._epoch is not None and epoch > self._epoch:
            self._length = iter / epoch
        self._epoch = epoch
        end, (first, then) = self.iterations(), self.begun
        if end is None or iter <= first:
            return None
        return max(0.0, end - iter) * (now - then) / (iter - first)

    def iterations(self) -> float | None:
        """Say how many iterations the run has, as far as is known."""
        if self.total is None:
            return None
        if self.total.unit == "iter":
            return float(self.total.count)
        return None if self._length is None else self.total.count * self._length
