"""Examining where a source can begin: in the middle of an epoch, as a resumed run does?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from types import GeneratorType
from typing import Any

from torch.utils.data import DataLoader

from purerun.data import Foreign, InexactResume, Position, Source, Stream
from purerun.data.flow import Seekable, Stateful
from purerun.doctor.finding import CHANCE, SEEK, Finding, found
from purerun.doctor.lines import Line, own_beginning
from purerun.doctor.looks import inside
from purerun.doctor.stages import map_style

BATCHES = 3
"""Batches that are read of each source."""

_REMEDY = (
    "give it `seek(epoch, position) -> iterator`, or `state_dict` and `load_state_dict`; a pr.Loader(dataset) begins "
    "anywhere at once"
)


def read(source: Source, seed: int, place: Position | None = None, count: int = BATCHES) -> list[tuple[Any, Position]]:
    """Read some batches, and the position after each.

    >>> [position.cursor for _, position in read(pr.Loader([1, 2, 3, 4], batch_size=1), seed=0)]
    [1, 2, 3]
    """
    with source.open(seed) as session:
        return list(islice(session.read(*(place or Position(0, 0))), count))


def iterable(source: Source) -> Any:
    """Find what a source iterates over: a dataset, or batches of somebody else's."""
    if isinstance(source, Foreign):
        loads = isinstance(source.batches, DataLoader) and map_style(source) is None
        return source.batches.dataset if loads else source.batches  # type: ignore[union-attr]
    return source.dataset if isinstance(source, Stream) else source


def is_spent(source: Source) -> bool:
    """Say whether a source can be run through only once."""
    inner = iterable(source)
    return isinstance(inner, Iterator) and not isinstance(inner, Seekable | Stateful)


def place_of(source: Source) -> Line | None:
    """Find where the iteration of a source is written down, if the user has."""
    inner = iterable(source)
    if isinstance(inner, GeneratorType):
        return Line(inner.gi_code.co_filename, inner.gi_code.co_firstlineno, exact=False)
    kind = type(inner)
    methods = [vars(kind).get(name) for name in ("seek", "load_state_dict", "__iter__")]
    return own_beginning(*(method for method in methods if method is not None), inner)


def spent(part: str, source: Source) -> Finding:
    """Say that a source can be run through only once."""
    name = type(iterable(source)).__name__
    message = f"{name} can be run through only once: there is no second epoch, and no way back into the first"
    return found(part, SEEK, message, place_of(source), "give something that can be iterated again, with a seek")


def begun_in_the_middle(part: str, source: Source, seed: int, *, sound: bool) -> Iterator[Finding]:
    """Read from after the first batch on, and compare with reading through.

    Args:
        part: the source's path in the recipe.
        source: what is read.
        seed: of the run.
        sound: whether it gives the same when it is read twice from the start.
    """
    through = read(source, seed)
    if len(through) < 2:
        return  # an epoch of one batch has no middle
    place = through[0][1]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        begun = read(source, seed, place, len(through) - 1)
    same = inside([batch for batch, _ in begun]) == inside([batch for batch, _ in through[1:]])
    if any(issubclass(each.category, InexactResume) for each in told):
        yield _inexact(part, source, same=same, sound=sound)
    elif sound and not same:
        message = f"begun at sample {place.cursor} of the epoch, it gives other batches than read through"
        yield found(part, CHANCE, message, place_of(source), "let what comes be a function of (epoch, position)")


def _inexact(part: str, source: Source, *, same: bool, sound: bool) -> Finding:
    name = type(source.batches if isinstance(source, Foreign) else iterable(source)).__name__
    outcome = "; here the same came after it" if same else "; and here something else came after it"
    message = (
        f"{name} cannot begin in the middle of an epoch (InexactResume): what comes before is loaded and thrown away"
        f"{outcome if same or sound else ''}"
    )
    # Its order is a function of (seed, epoch) and its dataset is asked by index: nothing is lost but time.
    if map_style(source) is not None and (same or not sound):
        return found(part, SEEK, message, None, "pr.Loader(dataset, ...) begins anywhere at once", kind="note")
    return found(part, SEEK, message, place_of(source), _REMEDY)
