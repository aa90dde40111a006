"""Making samples with the global generators at their keys, and no more seeding than the samples need.

Seeding numpy's and Python's generators takes five times as long as seeding torch's, and most data sets draw from
neither.  So a batch is first made with torch's alone at each sample's key; if that moved one of the others, the batch
is made again with that one seeded too, and so is every batch after it.  The samples are those of seeding all three.
(torch's is always seeded: some make generators of their own from `torch.initial_seed()`, which moves nothing.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from purerun.random import Key, seed_everywhere

# Looking whether the generators have moved costs as much as seeding them for about ten samples.
_FEW = 16

# Where a generator stands while it is watched.
_STILL = Key(0)


class _Generator(NamedTuple):
    """One of the two global generators that are dear to seed."""

    state: Callable[[], Any]
    seed: Callable[[int], Any]
    same: Callable[[Any, Any], bool]


def _same_numpy(one: Any, other: Any) -> bool:
    return one[2:] == other[2:] and np.array_equal(one[1], other[1])


_NUMPY = _Generator(np.random.get_state, lambda value: np.random.seed(value & 0xFFFFFFFF), _same_numpy)  # noqa: NPY002
_PYTHON = _Generator(random.getstate, random.seed, lambda one, other: one == other)


class Draws:
    """What is known about the generators that a dataset draws from."""

    def __init__(self) -> None:
        self._drawn: list[_Generator] = []
        self._watched: list[tuple[_Generator, Any]] = []

    def samples(self, make: Callable[[int], Any], key: Callable[[int], Key], count: int) -> list[Any]:
        """Make the samples 0, 1, ..., each with the generators that it draws from at its own key.

        Args:
            make: place -> sample.
            key: place -> the sample's key.
            count: samples to make.

        >>> Draws().samples(lambda place: torch.rand(()).item() < 1, lambda place: Key.of(0, place), 2)
        [True, True]
        """
        if count < _FEW or torch.cuda.is_initialized():
            return [_seeded(make, key, place) for place in range(count)]
        while True:
            self._hold_still()
            try:
                samples = [self._sample(make, key, place) for place in range(count)]
            except Exception:
                if self._learned():
                    continue  # with its generators at their keys it may not fail
                raise
            if not self._learned():
                return samples

    def _hold_still(self) -> None:
        seed_everywhere(_STILL)
        if not self._watched and not self._drawn:
            self._watched = [(generator, generator.state()) for generator in (_NUMPY, _PYTHON)]

    def _learned(self) -> bool:
        """Find out which generators have moved; say whether any has."""
        moved = [one for one, still in self._watched if not one.same(still, one.state())]
        self._drawn += moved
        self._watched = [(one, still) for one, still in self._watched if one not in moved]
        return bool(moved)

    def _sample(self, make: Callable[[int], Any], key: Callable[[int], Key], place: int) -> Any:
        value = key(place).value
        torch.default_generator.manual_seed(value)
        for generator in self._drawn:
            generator.seed(value)
        return make(place)


def _seeded(make: Callable[[int], Any], key: Callable[[int], Key], place: int) -> Any:
    seed_everywhere(key(place))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(key(place).value)
    return make(place)
