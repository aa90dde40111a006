"""Making samples with the global generators at their keys, and no more seeding than the samples need.

Seeding numpy's and Python's generators takes five times as long as seeding torch's, and most data sets draw from
neither.  So a batch is first made with torch's alone at each sample's key; if that moved one of the others, the batch
is made again with it seeded too, and so is every batch after that.  The samples are those of seeding everything always.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from purerun.random import Key, seed_everywhere

# Looking at the two generators costs as much as seeding them for about fifteen samples.
_FEW = 16


class Draws:
    """What is known about the generators that a dataset draws from."""

    def __init__(self) -> None:
        self._numpy = self._python = False

    def samples(self, make: Callable[[int], Any], keys: list[Key], batch: Key) -> list[Any]:
        """Make samples 0, 1, ...: each with the generators that it draws from at its own key.

        Args:
            make: place -> sample.
            keys: one for each sample.
            batch: where the generators stand that no sample draws from.
        """
        if len(keys) < _FEW:
            return [_seeded(seed_everywhere, make, key, place) for place, key in enumerate(keys)]
        while True:
            seed_everywhere(batch)
            before = self._seen()
            try:
                samples = [_seeded(self._seed, make, key, place) for place, key in enumerate(keys)]
            except Exception:
                if self._learned(before):
                    continue  # with its generators at their keys it may not fail
                raise
            if not self._learned(before):
                return samples

    def _seed(self, key: Key) -> None:
        if self._numpy and self._python:
            seed_everywhere(key)
            return
        torch.default_generator.manual_seed(key.value)
        if self._numpy:
            np.random.seed(key.value & 0xFFFFFFFF)  # noqa: NPY002 - what data sets draw from
        if self._python:
            random.seed(key.value)

    def _seen(self) -> tuple[Any, Any]:
        numpy = None if self._numpy else np.random.get_state()  # noqa: NPY002 - what data sets draw from
        return numpy, None if self._python else random.getstate()

    def _learned(self, before: tuple[Any, Any]) -> bool:
        """Compare what was seen before with now; say whether there is something new."""
        numpy, python = self._seen()
        self._numpy = moved = self._numpy or not _same(before[0], numpy)
        new = moved and numpy is not None
        self._python = moved = self._python or before[1] != python
        return new or (moved and python is not None)


def _same(one: Any, other: Any) -> bool:
    return one is other or (one[2:] == other[2:] and np.array_equal(one[1], other[1]))


def _seeded(seed: Callable[[Key], None], make: Callable[[int], Any], key: Key, place: int) -> Any:
    seed(key)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(key.value)
    return make(place)
