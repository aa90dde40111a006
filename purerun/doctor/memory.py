"""Memory: what the spots of some code hold at a moment, to see what has changed, and to put it back."""

from __future__ import annotations

import copy
import math
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from purerun.doctor.generators import kind_of
from purerun.doctor.looks import COLLECTIONS, PLAIN, same_object
from purerun.doctor.spots import ABSENT, Spot, spots

# What weighs more bytes is not copied, and so cannot be put back.
_LARGE = 64 * 1024 * 1024


@attrs.frozen
class Kept:
    """What one spot held.

    Attributes:
        value: the very object.
        look: how its contents looked.
        contents: a copy of them, as far as they can be put back.
    """

    value: Any
    look: str
    contents: Any


@attrs.frozen
class Memory:
    """What all spots within reach of some things held.

    >>> from argparse import Namespace
    >>> box = Namespace(calls=[])
    >>> memory = remembered([box])
    >>> box.calls.append(1)
    >>> [spot.name for spot in memory.changed()]
    ['Namespace.calls']
    >>> memory.put_back(memory.changed())
    >>> box.calls
    []
    """

    roots: tuple[Any, ...]
    kept: Mapping[str, Kept]

    def changed(self) -> list[Spot]:
        """Find the spots that look different now, new ones included."""
        now = spots(self.roots)
        return [spot for key, spot in now.items() if look(spot) != (self.kept[key].look if key in self.kept else None)]

    def put_back(self, some: Iterable[Spot]) -> None:
        """Let some spots hold again what they held."""
        for spot in some:
            kept = self.kept.get(spot.key)
            if kept is None:
                spot.put(ABSENT)
            else:
                spot.put(kept.value)
                _refill(kept.value, kept.contents)


def remembered(roots: Iterable[Any]) -> Memory:
    """Note what all spots within reach of some things hold."""
    roots = tuple(roots)
    kept = {}
    for key, spot in spots(roots).items():
        value = spot.get()
        kept[key] = Kept(value, look(spot), _contents(value))
    return Memory(roots, kept)


def look(spot: Spot) -> str:
    """Say how a spot looks now."""
    return same_object(spot.get())


def _contents(value: Any) -> Any:
    if (kind := kind_of(value)) is not None:
        return kind.read(value)
    light = _weight(value) <= _LARGE
    if isinstance(value, Tensor):
        return value.detach().clone() if light else None
    if isinstance(value, np.ndarray):
        return value.copy() if light else None
    if isinstance(value, dict | list | set | deque):
        return copy.deepcopy(value) if light else copy.copy(value)
    return None


def _weight(value: Any) -> float:
    """Count the bytes of data; infinite for what holds anything else, of which a copy is not as good as itself."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.nbytes if isinstance(value, np.ndarray | np.generic) or value.is_leaf else math.inf
    if type(value) in PLAIN:
        return sys.getsizeof(value)
    if isinstance(value, COLLECTIONS) or type(value) is dict:
        total = 0.0
        for inner in value.values() if isinstance(value, dict) else value:
            total += _weight(inner)
            if total > _LARGE:
                return math.inf
        return total
    return math.inf


def _refill(value: Any, contents: Any) -> None:
    if contents is None:
        return
    # Copied once more: it may be put back again.
    fresh = _contents(contents)
    if (kind := kind_of(value)) is not None:
        kind.write(value, contents)
    elif isinstance(value, Tensor):
        with torch.no_grad():
            value.copy_(contents)
    elif isinstance(value, np.ndarray):
        value[...] = contents
    elif isinstance(value, dict | set):
        value.clear()
        value.update(fresh)
    elif isinstance(value, list | deque):
        value.clear()
        value.extend(fresh)
