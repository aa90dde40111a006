"""Making samples with the global generators at their keys, and no more seeding than the samples need.

Seeding numpy's and Python's generators takes five times as long as seeding torch's, and most data sets draw from
neither.  So a batch is first made with torch's alone at each sample's key; if that moved one of the others, the batch
is made again with it seeded too, and so is every batch after that.  The samples are those of seeding everything always.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from purerun.random import Key, seed_everywhere

# Looking whether a generator has moved costs as much as seeding it for about ten samples.
_FEW = 16

_ANYWHERE = Key(0)


class Draws:
    """What is known about the generators that a dataset draws from."""

    def __init__(self) -> None:
        self._numpy = self._python = False
        self._still: tuple[Any, Any] = (None, None)

    def samples(self, make: Callable[[int], Any], keys: Sequence[Key]) -> list[Any]:
        """Make the samples 0, 1, ..., each with the generators that it draws from at its own key.

        >>> Draws().samples(lambda place: random.random() < 1, [Key.of(0), Key.of(1)])
        [True, True]
        """
        if len(keys) < _FEW or (self._numpy and self._python):
            return [_seeded(seed_everywhere, make, key, place) for place, key in enumerate(keys)]
        while True:
            self._hold_still()
            try:
                samples = [_seeded(self._seed, make, key, place) for place, key in enumerate(keys)]
            except Exception:
                if self._learned():
                    continue  # with its generators at their keys it may not fail
                raise
            if not self._learned():
                return samples

    def _hold_still(self) -> None:
        """Put the generators somewhere, to see later whether they have moved."""
        seed_everywhere(_ANYWHERE)
        if self._still[0] is None:
            self._still = _numpy_state(), random.getstate()

    def _learned(self) -> bool:
        """Find out which generators have moved; say whether that is news."""
        numpy = not self._numpy and not _same(self._still[0], _numpy_state())
        python = not self._python and self._still[1] != random.getstate()
        self._numpy, self._python = self._numpy or numpy, self._python or python
        return numpy or python

    def _seed(self, key: Key) -> None:
        torch.default_generator.manual_seed(key.value)
        if self._numpy:
            np.random.seed(key.value & 0xFFFFFFFF)  # noqa: NPY002 - what data sets draw from
        if self._python:
            random.seed(key.value)


def _numpy_state() -> Any:
    return np.random.get_state()  # noqa: NPY002 - what data sets draw from


def _same(one: Any, other: Any) -> bool:
    return one[2:] == other[2:] and np.array_equal(one[1], other[1])


def _seeded(seed: Callable[[Key], None], make: Callable[[int], Any], key: Key, place: int) -> Any:
    seed(key)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(key.value)
    return make(place)
