"""Chance for a whole batch: each sample's draws depend on its own position, not on its neighbours."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from purerun.random import Key, bits, uniform


@attrs.frozen
class Chance:
    """Where the samples of a batch take their chance from.

    The same sample gets the same draws in any batch: joined, cut or reordered.  All draws are
    made on the CPU, so that they are the same whatever device the batch is on.

    Attributes:
        key: of the seed and the epoch.
        positions: of the samples in the epoch's order, int64, shape [n].

    >>> chance = Chance(Key.of(0, "sample", 3), torch.arange(100))
    >>> alone = Chance(Key.of(0, "sample", 3), torch.tensor([7]))
    >>> torch.equal(chance.uniform(2)[7:8], alone.uniform(2))
    True
    """

    key: Key
    positions: Tensor = attrs.field(eq=attrs.cmp_using(eq=torch.equal), hash=False)

    def fold_in(self, *path: int | str) -> Chance:
        """Make a chance that is independent of this one."""
        return attrs.evolve(self, key=self.key.fold_in(*path))

    def uniform(self, count: int, name: str = "") -> Tensor:
        """Draw numbers in [0, 1): float32, shape [n, count].

        Args:
            count: draws for each sample.
            name: what for; draws of different names are independent.
        """
        return uniform(self.key.fold_in("uniform", name), self.positions, count)

    def integers(self, low: int, high: int, count: int, name: str = "") -> Tensor:
        """Draw whole numbers in [low, high): int64, shape [n, count].

        Raises:
            ValueError: the interval is empty.
        """
        if low >= high:
            raise ValueError(f"expected low < high, got {low} and {high}")
        draws = bits(self.key.fold_in("integers", name), self.positions, count)
        # 62 bits, whose modulo is even to within (high - low) / 2**62.
        return low + (draws & ((1 << 62) - 1)) % (high - low)

    def normal(self, count: int, name: str = "") -> Tensor:
        """Draw standard normal numbers: float32, shape [n, count].

        By the inverse of the normal distribution at the middles of 2**52 equal steps.
        """
        draws = bits(self.key.fold_in("normal", name), self.positions, count)
        steps = (draws >> 12) & ((1 << 52) - 1)
        # ndtri is computed number by number: vectorised logarithms may round a number
        # differently at another place of the tensor, and so in another batch.
        return torch.special.ndtri((steps.to(torch.float64) + 0.5) / (1 << 52)).to(torch.float32)
