"""Seeding only what is drawn from gives the samples of seeding everything always."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch

from purerun.data.draws import Draws
from purerun.random import Key, seed_everywhere
from tests.data.samples import Noisy, same

KINDS = ("torch", "numpy", "python")
SETS = [kinds for count in range(4) for kinds in combinations(KINDS, count)]


def key(epoch):
    return lambda place: Key.of(0, "sample", epoch, place)


def oracle(make, count, epoch):
    """Seed everything before each sample."""
    samples = []
    for place in range(count):
        seed_everywhere(key(epoch)(place))
        samples.append(make(place))
    return samples


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("kinds", SETS)
def test_samples_are_those_of_seeding_everything(kinds, count):
    """Whatever a dataset draws from, and however many samples a batch has."""
    dataset, draws = Noisy(count, kinds), Draws()

    for epoch in range(3):
        expected = oracle(dataset.__getitem__, count, epoch)
        torch.rand(1), np.random.rand(), random.random()
        assert same(expected, draws.samples(dataset.__getitem__, key(epoch), count))


def test_the_initial_seed_of_torch_is_the_sample_s():
    """Generators that a dataset makes from `torch.initial_seed()` are keyed too, though that moves nothing."""
    found = Draws().samples(lambda place: torch.initial_seed(), key(0), 20)

    assert [key(0)(place).value for place in range(20)] == found


def test_a_generator_that_is_used_late_is_noticed():
    """A dataset may draw from a generator for the first time in any sample of any batch."""

    def make(place):
        value = torch.rand(()).item()
        if value > 0.97:
            value += random.random()
        return value + np.random.randn() if value > 1.5 else value

    draws = Draws()
    for epoch in range(12):
        assert oracle(make, 20, epoch) == draws.samples(make, key(epoch), 20)


@pytest.mark.parametrize(("kinds", "again"), [((), 0), (("torch",), 0), (("numpy",), 1), (KINDS, 1)])
def test_a_batch_is_made_again_only_to_learn(kinds, again):
    """Samples that draw from torch alone are made once; others once more, in the first batch."""
    dataset, draws = Noisy(20, kinds), Draws()
    for epoch in range(3):
        draws.samples(dataset.__getitem__, key(epoch), 20)

    assert 60 + 20 * again == len(dataset.asked)


def test_an_error_that_only_other_chance_brings_is_none():
    """A sample that fails for some draws fails exactly where seeding everything would fail."""

    def make(place):
        if random.random() > 0.9:
            raise ArithmeticError(place)
        return place

    fair = [epoch for epoch in range(60) if not fails(lambda epoch=epoch: oracle(make, 16, epoch))]
    found = [epoch for epoch in range(60) if not fails(lambda epoch=epoch: Draws().samples(make, key(epoch), 16))]

    assert fair == found
    assert 0 < len(fair) < 60


def fails(act):
    try:
        act()
    except ArithmeticError:
        return True
    return False
