"""Data sets and comparisons that the tests of data share."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset


class Pair(NamedTuple):
    """A batch or sample with names."""

    image: Any
    label: Any


class Noisy(Dataset):
    """Samples that draw from all three global generators, as other people's transforms do."""

    def __init__(self, size, draws=("torch", "numpy", "python")):
        self.size, self.draws, self.asked = size, draws, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked.append(index)
        sample = {"index": index}
        if "torch" in self.draws:
            sample["torch"] = torch.rand(2)
        if "numpy" in self.draws:
            sample["numpy"] = float(np.random.rand())
        if "python" in self.draws:
            sample["python"] = random.random()
        return sample


class Named(Noisy):
    """The same as named tuples."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return Pair(torch.cat([sample["torch"], torch.tensor([sample["python"]])]), index)


def noisy_collate(samples):
    """A collate that draws too, as those do that choose a size for the batch."""
    return {"index": torch.tensor([sample["index"] for sample in samples]), "scale": random.random(), "list": samples}


def same(one, other):
    """Whether two nests are equal in every bit and type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def rows(batches):
    """Cut batches of named or unnamed tensors into samples: what does not depend on the batch size."""
    found = []
    for batch in batches:
        leaves = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
        found += [tuple(leaf[place] for leaf in leaves) for place in range(len(leaves[0]))]
    return found


def generators():
    """The states of the three global generators."""
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()[1:])


class StateStub(dict):
    """What a loader needs of a State."""

    def replace(self, changes):
        return StateStub(self | changes)


def state(seed=0, epoch=0, cursor=0):
    """A state that stands somewhere."""
    return StateStub(seed=torch.tensor(seed), epoch=torch.tensor(epoch), cursor=torch.tensor(cursor))
