"""Generators of chance, the global ones and those that code keeps to itself: where they stand, to be put back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch


class Kind(NamedTuple):
    """One kind of generator."""

    type: type
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]


def _put_numpy(generator: Any, state: Any) -> None:
    generator.bit_generator.state = state


def _put_torch(generator: Any, state: Any) -> None:
    generator.set_state(state)


def _put_bits(generator: Any, state: Any) -> None:
    generator.state = state


KINDS = (
    Kind(np.random.Generator, lambda generator: generator.bit_generator.state, _put_numpy),
    Kind(np.random.RandomState, lambda generator: generator.get_state(legacy=False), np.random.RandomState.set_state),
    Kind(np.random.BitGenerator, lambda generator: generator.state, _put_bits),
    Kind(random.Random, random.Random.getstate, random.Random.setstate),
    Kind(torch.Generator, torch.Generator.get_state, _put_torch),
)
"""All kinds that are known here."""

GLOBAL: dict[str, Any] = {
    "torch's global generator": torch.default_generator,
    "numpy's global generator": np.random.mtrand._rand,
    "Python's random": random._inst,  # type: ignore[attr-defined]
}
"""The generators that a Loader and a step put at their keys."""


def kind_of(value: Any) -> Kind | None:
    """Find the kind of a generator; None if it is none, or has no place that one could go back to.

    >>> kind_of(random.Random()).type, kind_of(random.SystemRandom()), kind_of(3)
    (<class 'random.Random'>, None, None)
    """
    if isinstance(value, random.SystemRandom):
        return None
    return next((kind for kind in KINDS if isinstance(value, kind.type)), None)


def is_global(value: Any) -> bool:
    """Say whether a generator is one of the global ones, which are keyed."""
    return any(value is each for each in GLOBAL.values())
