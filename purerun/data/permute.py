"""A keyed permutation that is computed index by index, for orders too long to be written down."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from purerun.random import Key, bits

# A Feistel network needs about six rounds until no test that sees all of a small domain tells it from a
# random permutation (Patarin, "Security of balanced and unbalanced Feistel schemes", 2010); two are spare.
_ROUNDS = 8


def permute(key: Key, positions: Tensor, size: int) -> Tensor:
    """Map positions to indices by a permutation of `range(size)` that the key chooses.

    A generalised Feistel network with cycle walking (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002): a position is a pair (left, right) below two numbers
    whose product is just above `size`; in turn, a strong hash of one half is added to the
    other; a result beyond `size` goes through again.

    Args:
        key: which permutation.
        positions: int64, shape [n], each in [0, size).
        size: how many indices there are.

    Returns:
        int64, shape [n].

    >>> sorted(permute(Key.of(0), torch.arange(10), 10).tolist()) == list(range(10))
    True
    """
    keys = [key.fold_in("round", number) for number in range(_ROUNDS)]
    indices = _network(keys, positions, size)
    while len(beyond := torch.nonzero(indices >= size).squeeze(-1)):
        indices[beyond] = _network(keys, indices[beyond], size)
    return indices


def _network(keys: list[Key], positions: Tensor, size: int) -> Tensor:
    rows = isqrt(size - 1) + 1 if size > 1 else 1
    columns = -(-size // rows)
    left, right = positions // columns, positions % columns
    for number, key in enumerate(keys):
        if number % 2:
            right = (right + _hashed(key, left)) % columns
        else:
            left = (left + _hashed(key, right)) % rows
    return left * columns + right


def _hashed(key: Key, values: Tensor) -> Tensor:
    # 62 bits: the sum with a half stays positive, and the modulo's bias is below size / 2**62.
    return bits(key, values, 1).squeeze(-1) & ((1 << 62) - 1)
