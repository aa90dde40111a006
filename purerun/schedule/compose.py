"""Several schedules as one function of the two counters, composed as MMEngine's recursion composes them.

MMEngine applies, at each counter value and in list order, one move of every schedule whose window is open.  Here
the whole product is written down: where overlapping schedules only scale, or one alone is at work, as closed
forms; where several are at work that do not commute, as the recursion itself, kept in chunks of rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import merge
from itertools import accumulate, combinations
from typing import NamedTuple

import attrs

from purerun import valid
from purerun.schedule.affine import Affine
from purerun.schedule.window import TINY, Move, Schedule

_CHUNK = 1024

#: A quotient of two factors beyond this has left zero (see TINY); no hyper-parameter is so large.
_HUGE = 1e30

Interval = tuple[int, int]


class Segment(NamedTuple):
    """A stretch of one counter in which one move is at work, and after which its result holds.

    `move(since, now)` counts from `begin`; `last` is the last counter value of the stretch.
    """

    start: int
    last: int
    begin: int
    since: int
    move: Callable[[int, int], Move]
    by_iter: bool
    place: int


@attrs.frozen
class Contest:
    """A stretch in which schedules are at work that do not commute: MMEngine's recursion over `start` to `stop`.

    Its rows are functions of the schedules alone; a chunk of them is made when it is first asked for, from the
    last row of the one before, and never changes.

    Raises:
        ValueError: a factor of zero is followed by another, and something was added in between.
    """

    schedules: tuple[Schedule, ...]
    start: int
    _chunks: dict[int, array[float]] = attrs.field(init=False, factory=dict, eq=False, repr=False)

    def move(self, since: int, now: int) -> Move:
        """Return what the first `now + 1` steps do (`since` is always -1: a contest is never cut)."""
        chunk, row = divmod(now, _CHUNK)
        rows = self._chunks.get(chunk)
        if rows is None:
            rows = self._fill(chunk)
        row *= 3
        return rows[row], rows[row + 1], rows[row + 2]

    def _fill(self, chunk: int) -> array[float]:
        for index in range(len(self._chunks), chunk + 1):
            # Another thread may be here too: it writes the same numbers.
            self._chunks[index] = self._rows(index)
        return self._chunks[chunk]

    def _rows(self, chunk: int) -> array[float]:
        state = self.move(-1, chunk * _CHUNK - 1) if chunk else (1.0, 0.0, 0.0)
        rows = array("d")
        first = self.start + chunk * _CHUNK
        for count in range(first, first + _CHUNK):
            state = self._step(state, count)
            rows.extend(state)
        return rows

    def _step(self, state: Move, count: int) -> Move:
        scale, gain, shift = state
        leap = False
        for schedule in self.schedules:
            step = count - schedule.begin
            if 0 <= step <= schedule.last:
                keep, more, add = schedule.move(step - 1, step)
                # The limit of ever smaller factors, see TINY; an absolute move really does forget.
                keep = TINY if keep == more == add == 0 else keep
                leap = leap or keep > _HUGE
                scale, gain, shift = keep * scale, keep * gain + more, keep * shift + add
        if leap and max(abs(gain), abs(shift)) > _HUGE:
            raise ValueError(self._leap(count))
        return scale, gain, shift

    def _leap(self, count: int) -> str:
        names = ", ".join(type(schedule).__name__ for schedule in self.schedules)
        return (
            f"schedules of `{self.schedules[0].param}` ({names}): at {self.schedules[0].by} {count} a factor leaves "
            "zero after another schedule has added to the value, which has no finite result; start from a factor "
            "above zero, or let their windows not overlap"
        )


def _schedules(given: Iterable[Schedule]) -> tuple[Schedule, ...]:
    schedules = tuple(given)
    for schedule in schedules:
        if not isinstance(schedule, Schedule):
            raise ValueError(f"expected schedules of `purerun.schedule`, got {schedule!r}")
    return schedules


@attrs.frozen
class Plan:
    """Schedules, ready to be asked at every iteration: `plan(epoch, iter)` is a map for each hyper-parameter.

    A pure function of the finished epochs and iterations: the same whatever was asked before, at the same cost.

    >>> from purerun.schedule import Linear, MultiStep
    >>> plan = Plan([Linear(0.5, end=5, by="iter"), MultiStep([2])])
    >>> plan(epoch=0, iter=0)
    {'lr': Affine(scale=0.5, shift=0.0)}
    >>> plan(epoch=2, iter=1_000_000)
    {'lr': Affine(scale=0.1, shift=0.0)}
    """

    schedules: tuple[Schedule, ...] = attrs.field(converter=_schedules)
    _chains: tuple[tuple[str, tuple[Segment, ...]], ...] = attrs.field(init=False, eq=False, repr=False)

    @_chains.default
    def _compile(self) -> tuple[tuple[str, tuple[Segment, ...]], ...]:
        params = dict.fromkeys(schedule.param for schedule in self.schedules)
        return tuple((param, _chain([s for s in self.schedules if s.param == param])) for param in params)

    def __reduce__(self) -> tuple[type[Plan], tuple[tuple[Schedule, ...]]]:
        """Copy and pickle a plan as its schedules."""
        return Plan, (self.schedules,)

    @property
    def params(self) -> tuple[str, ...]:
        """The names of the hyper-parameters that are scheduled."""
        return tuple(param for param, _ in self._chains)

    def __call__(self, epoch: int, iter: int) -> dict[str, Affine]:
        """Return the map of each scheduled hyper-parameter after `epoch` epochs and `iter` iterations."""
        maps = {}
        for param, chain in self._chains:
            scale, shift = 1.0, 0.0
            for start, last, begin, since, move, by_iter, _ in chain:
                count = iter if by_iter else epoch
                if count >= start:
                    keep, gain, add = move(since, (count if count < last else last) - begin)
                    scale, shift = keep * scale + gain, keep * shift + add
            maps[param] = Affine(scale, shift)
        return maps


_plan = lru_cache(maxsize=256)(Plan)


def compose(schedules: Sequence[Schedule], *, epoch: int, iter: int) -> dict[str, Affine]:
    """Return the map of each scheduled hyper-parameter for the iteration that is about to run.

    Args:
        schedules: in the order in which they are applied.
        epoch: finished epochs.
        iter: finished iterations.

    Raises:
        ValueError: an entry is not a schedule, or the composition has no finite result.

    >>> from purerun.schedule import Cosine, Linear
    >>> compose([Linear(0.0, end=5, by="iter"), Cosine(period=10)], epoch=5, iter=2)
    {'lr': Affine(scale=0.2499..., shift=0.0)}
    """
    return _plan(tuple(schedules))(epoch, iter)


def values(schedules: Sequence[Schedule], base: float, iters: int, epoch_length: int, param: str = "lr") -> list[float]:
    """Return the value of a hyper-parameter at each iteration of a run.

    Args:
        schedules: in the order in which they are applied.
        base: the base value.
        iters: iterations of the run.
        epoch_length: iterations of each epoch.
        param: which hyper-parameter.

    Raises:
        ValueError: `epoch_length` is not a whole number of at least 1, or as for `compose`.

    >>> from purerun.schedule import Step
    >>> values([Step(1, gamma=0.5)], base=8.0, iters=5, epoch_length=2)
    [8.0, 8.0, 4.0, 4.0, 2.0]
    """
    if not valid.is_whole(epoch_length) or epoch_length < 1:
        raise ValueError(f"`epoch_length` should be a whole number of at least 1, but it is {epoch_length!r}")
    plan = Plan(schedules)
    if param not in plan.params:
        return [base] * iters
    return [plan(count // epoch_length, count)[param](base) for count in range(iters)]


def _chain(schedules: list[Schedule]) -> tuple[Segment, ...]:
    """Return the segments of one hyper-parameter in the order in which they are applied.

    Those of one counter are in the order of time; the two counters are merged by place in the list, because
    the counters alone do not say what comes first.
    """
    indexed = list(enumerate(schedules))
    counters = [_segments([(i, s) for i, s in indexed if s.by == unit]) for unit in ("iter", "epoch")]
    return tuple(merge(*counters, key=lambda segment: segment.place))


def _segments(schedules: list[tuple[int, Schedule]]) -> list[Segment]:
    """Return the segments of one counter in the order of time."""
    contested = _contested([schedule for _, schedule in schedules])
    found = [_piece(i, s, *part) for i, s in schedules for part in _rest(s, contested)]
    found += [_contest(schedules, *part) for part in contested]
    found.sort(key=lambda segment: segment.start)
    # A segment may not overtake an earlier one of its counter when the counters are merged.
    places = accumulate((segment.place for segment in found), max)
    return [segment._replace(place=place) for segment, place in zip(found, places, strict=True)]


def _contested(schedules: list[Schedule]) -> list[Interval]:
    """Return the disjoint intervals in which several schedules are at work and do not all commute."""
    pairs = [(max(a.begin, b.begin), min(a.stop, b.stop)) for a, b in combinations(schedules, 2) if not _commute(a, b)]
    joined: list[Interval] = []
    for start, stop in sorted(pair for pair in pairs if pair[0] < pair[1]):
        if joined and start <= joined[-1][1]:
            start, stop = joined[-1][0], max(stop, joined.pop()[1])
        joined.append((start, stop))
    return joined


def _commute(a: Schedule, b: Schedule) -> bool:
    return a.scales and b.scales


def _rest(schedule: Schedule, contested: list[Interval]) -> Iterator[Interval]:
    """Yield what of a schedule's window lies outside the contested intervals."""
    start = schedule.begin
    for low, high in contested:
        if start < min(low, schedule.stop):
            yield start, min(low, schedule.stop)
        start = max(start, high)
    if start < schedule.stop:
        yield start, schedule.stop


def _piece(place: int, schedule: Schedule, start: int, stop: int) -> Segment:
    begin = schedule.begin
    # A schedule by epoch, or one that is over, is asked the same thing again and again.
    move = lru_cache(maxsize=1)(schedule.move)
    return Segment(start, stop - 1, begin, start - 1 - begin, move, schedule.by == "iter", place)


def _contest(schedules: list[tuple[int, Schedule]], start: int, stop: int) -> Segment:
    members = [(place, s) for place, s in schedules if s.begin < stop and start < s.stop]
    contest = Contest(tuple(s for _, s in members), start)
    contest.move(-1, 0)  # makes the first rows, so that what has no finite result is refused now
    return Segment(start, stop - 1, start, -1, contest.move, members[0][1].by == "iter", members[0][0])
