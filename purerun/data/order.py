"""Orders: which sample stands at which position of which epoch, as pure functions of a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from math import isfinite
from typing import Literal

import attrs
import torch
from torch import Tensor

from purerun.data.permute import permute
from purerun.random import Key, bits
from purerun.valid import whole

Reader = Callable[[int, int], Tensor]
"""One epoch's order: (start, stop) -> the indices at these positions, int64 [stop - start]."""

# A written-down permutation of this many indices takes 80 MB and 0.7 s.
_LONG = 10_000_000


class Order(ABC):
    """A pure function (seed, epoch, position) -> index.

    Make your own with two methods; both are functions of their arguments only.
    """

    @abstractmethod
    def length(self, size: int) -> int | None:
        """Count the positions of an epoch over `size` samples; None when it never ends."""

    @abstractmethod
    def reader(self, seed: int, epoch: int, size: int) -> Reader:
        """Prepare one epoch: do once what all its positions share."""

    def indices(self, seed: int, epoch: int, start: int, stop: int, size: int) -> Tensor:
        """Say which samples stand at the positions `start` to `stop`: int64, shape [stop - start]."""
        return self.reader(seed, epoch, size)(start, stop)


@attrs.frozen
class Sequential(Order):
    """The samples as they stand.

    >>> Sequential().indices(seed=0, epoch=3, start=2, stop=5, size=10)
    tensor([2, 3, 4])
    """

    def length(self, size: int) -> int:
        """Count the positions of an epoch: one a sample."""
        return size

    def reader(self, seed: int, epoch: int, size: int) -> Reader:
        """Prepare one epoch: nothing to do."""
        return torch.arange


@attrs.frozen
class Shuffle(Order):
    """Another permutation of all samples in every epoch, keyed by (seed, "order", epoch).

    Attributes:
        method: "randperm" writes the permutation of an epoch down (uniform, 8 bytes a sample);
            "feistel" computes each index by itself (no memory, no start-up time); "auto" takes
            the first up to ten million samples.

    >>> order = Shuffle()
    >>> sorted(order.indices(seed=0, epoch=3, start=0, stop=6, size=6).tolist())
    [0, 1, 2, 3, 4, 5]
    """

    method: Literal["auto", "randperm", "feistel"] = attrs.field(
        default="auto", validator=attrs.validators.in_(("auto", "randperm", "feistel"))
    )

    def length(self, size: int) -> int:
        """Count the positions of an epoch: one a sample."""
        return size

    def reader(self, seed: int, epoch: int, size: int) -> Reader:
        """Prepare one epoch: write its permutation down, or only make its key."""
        key = Key.of(seed, "order", epoch)
        if self.method == "feistel" or (self.method == "auto" and size > _LONG):
            return partial(_permuted, key, size)
        permutation = torch.randperm(size, generator=key.generator(), device="cpu")
        return lambda start, stop: permutation[start:stop]


def _permuted(key: Key, size: int, start: int, stop: int) -> Tensor:
    return permute(key, torch.arange(start, stop, device="cpu"), size)


def _numbers(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(values.tolist() if isinstance(values, Tensor) else map(float, values))


def _short(values: tuple[float, ...]) -> str:
    return repr(values) if len(values) < 5 else f"({values[0]:g}, {values[1]:g}, ... {len(values)} numbers)"


@attrs.frozen
class Weighted(Order):
    """Samples drawn by weight, with replacement or without.

    With replacement, position by position: a keyed uniform number looked up in the cumulated
    weights.  Without, the whole epoch at once: the samples in the order of exponential times
    whose rates are the weights, which is drawing one after the other (Efraimidis and
    Spirakis, "Weighted random sampling with a reservoir", 2006).

    Attributes:
        weights: one number for each sample, none negative; they need not sum to one.
        num_samples: positions of an epoch; None for as many as there are weights.
        replacement: whether a sample can come again in the same epoch.

    >>> Weighted([0.0, 1.0, 0.0]).indices(seed=0, epoch=0, start=0, stop=4, size=3)
    tensor([1, 1, 1, 1])
    """

    weights: tuple[float, ...] = attrs.field(converter=_numbers, repr=_short)
    num_samples: int | None = attrs.field(default=None, kw_only=True)
    replacement: bool = attrs.field(default=True, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not all(isfinite(weight) and weight >= 0 for weight in self.weights) or not sum(self.weights):
            raise ValueError("expected finite weights >= 0, some of them > 0; check the weights of Weighted")
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"expected num_samples >= 1, got {self.num_samples}")
        possible = sum(weight > 0 for weight in self.weights)
        if not self.replacement and self.length(len(self.weights)) > possible:
            raise ValueError(
                f"expected num_samples <= {possible}, as many as have a weight above zero, got "
                f"{self.length(len(self.weights))} without replacement; lower num_samples or draw with replacement"
            )

    def length(self, size: int) -> int:
        """Count the draws of an epoch."""
        return len(self.weights) if self.num_samples is None else self.num_samples

    def reader(self, seed: int, epoch: int, size: int) -> Reader:
        """Prepare one epoch: cumulate the weights, or draw all of it."""
        if size != len(self.weights):
            raise ValueError(f"expected one weight for each of {size} samples, got {len(self.weights)} in Weighted")
        key, weights = Key.of(seed, "order", epoch), torch.tensor(self.weights, dtype=torch.float64, device="cpu")
        if self.replacement:
            return partial(_drawn, key, weights.cumsum(0))
        times = -torch.log1p(-_unit(key, 0, size)) / weights
        drawn = torch.argsort(times, stable=True)[: self.length(size)]
        return lambda start, stop: drawn[start:stop]


def _unit(key: Key, start: int, stop: int) -> Tensor:
    draws = bits(key, torch.arange(start, stop, device="cpu"), 1).squeeze(-1)
    return ((draws >> 11) & ((1 << 53) - 1)).to(torch.float64) / (1 << 53)


def _drawn(key: Key, cumulated: Tensor, start: int, stop: int) -> Tensor:
    # right=True: a sample of weight zero owns an empty interval and is never found.
    found = torch.searchsorted(cumulated, _unit(key, start, stop) * cumulated[-1], right=True)
    return found.clamp_(max=int(torch.searchsorted(cumulated, cumulated[-1])))


@attrs.frozen
class Seeded(Order):
    """An order with a seed of its own: the same for all runs, whatever theirs is.

    The runs of a sweep see one order; so does each of them that goes on alone, or is compared with another.

    Attributes:
        order: what is ordered so, such as `Shuffle()`.
        seed: its seed.

    >>> order = Seeded(Shuffle(), seed=7)
    >>> [order.indices(seed, 0, 0, 4, 4).equal(Shuffle().indices(7, 0, 0, 4, 4)) for seed in (0, 1)]
    [True, True]
    """

    order: Order = attrs.field(validator=attrs.validators.instance_of(Order))
    seed: int = attrs.field(default=0, validator=whole(0))

    def length(self, size: int) -> int | None:
        """Count the positions of an epoch: as many as in the order."""
        return self.order.length(size)

    def reader(self, seed: int, epoch: int, size: int) -> Reader:
        """Prepare one epoch by the seed of this order."""
        return self.order.reader(self.seed, epoch, size)


@attrs.frozen
class Infinite(Order):
    """An order without end: the epochs of another one, strung together.

    Position p of epoch e is position p % n of the inner order's epoch e + p // n, so a run
    that goes over from epochs to an endless order repeats nothing.

    >>> Infinite(Sequential()).indices(seed=0, epoch=0, start=3, stop=9, size=4)
    tensor([3, 0, 1, 2, 3, 0])
    """

    inner: Order = attrs.field(factory=Shuffle, validator=attrs.validators.instance_of(Order))

    def length(self, size: int) -> None:
        """Say that an epoch never ends."""
        return

    def reader(self, seed: int, epoch: int, size: int) -> Reader:
        """Prepare the first lap; the later ones are prepared when they come."""
        length = self.inner.length(size)
        if not length:
            raise ValueError(f"expected an inner order with an end, got {self.inner!r} of length {length}")
        return _Laps(lambda lap: self.inner.reader(seed, epoch + lap, size), length)


class _Laps:
    """A reader that goes through one inner epoch after the other."""

    def __init__(self, reader: Callable[[int], Reader], length: int) -> None:
        self._reader, self._length = reader, length
        self._lap = -1
        self._read: Reader = torch.arange

    def __call__(self, start: int, stop: int) -> Tensor:
        parts = []
        while start < stop:
            lap, first = divmod(start, self._length)
            last = min(first + stop - start, self._length)
            parts.append(self._inner(lap)(first, last))
            start += last - first
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device="cpu")

    def _inner(self, lap: int) -> Reader:
        if lap != self._lap:
            self._lap, self._read = lap, self._reader(lap)
        return self._read
