"""Packets: what some shards of a batch say together, in one piece of memory that travels as one message.

The rules are those of `purerun.merge`; the layout is flat, so that weighing, joining and sending are a few operations
on large tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple, TypeAlias
from zlib import crc32

import attrs
import torch
from torch import Tensor

from purerun.grad import Grads, LossError, Merge
from purerun.merge import plain, reported, scalar, summed
from purerun.wrappers import scratch

# The numbers at a packet's head: what it is about, the sum of weights, then the terms of the loss.
_TOKEN, _WEIGHT, _TERMS = range(3)
_ROUND = 32  # heads are as long as a multiple of this, so that packets of other terms still fit, and can be refused
_NUMBER = torch.float64
_ORDER: tuple[Merge, ...] = ("mean", "sum", "max", "min", "last")
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}

_unflatten: Callable[[Tensor, Sequence[Tensor]], list[Tensor]] = torch._C._nn.unflatten_dense_tensors  # type: ignore[assignment]


class Term(NamedTuple):
    """A term of the loss: how it merges, and its dtype."""

    merge: Merge
    name: str
    dtype: torch.dtype


Terms: TypeAlias = tuple[Term, ...]


def terms_of(grads: Grads) -> Terms:
    """List the terms that a loss reports, those that merge alike side by side."""
    merges = grads.merges
    found = [Term(merges.get(name, "mean"), name, value.dtype) for name, value in grads.metrics.items()]
    return tuple(sorted(found, key=lambda term: _ORDER.index(term.merge))) if merges else tuple(found)


@cache
def to_text(terms: Terms) -> str:
    """Write terms down.

    >>> to_text((Term("mean", "loss", torch.float32),))
    '[["mean", "loss", "torch.float32"]]'
    """
    return json.dumps([(term.merge, term.name, str(term.dtype)) for term in terms])


def from_text(text: str) -> Terms:
    """Read terms that were written down."""
    return tuple(Term(merge, name, _DTYPES[dtype]) for merge, name, dtype in json.loads(text))


@attrs.frozen(eq=False)
class Bin:
    """Tensors that are summed in one dtype and by one factor, side by side."""

    names: tuple[str, ...]
    like: tuple[Tensor, ...]
    sums: Tensor

    def put(self, tensors: Mapping[str, Tensor], factor: float | Tensor) -> None:
        """Write in tensors times a factor."""
        torch._foreach_copy_(_unflatten(self.sums, self.like), [tensors[name] for name in self.names])
        self.sums.mul_(factor)

    def divided(self, count: float | Tensor) -> dict[str, Tensor]:
        """Make the mean; the sums are written into."""
        tensors = _unflatten(self.sums.div_(count), self.like)
        if self.like[0].dtype != self.sums.dtype:
            tensors = [tensor.to(like.dtype) for tensor, like in zip(tensors, self.like, strict=True)]
        return dict(zip(self.names, tensors, strict=True))


@attrs.frozen(eq=False)
class Packet:
    """The sum of what some shards say.

    Attributes:
        memory: all of it, as bytes.
        head: what it is about, the sum of weights, and the terms: means times weight, or as they merge.
        terms: of the loss.
        grads: sums of weight times gradient.
        buffers: sums of samples times the buffers that are averaged.
    """

    memory: Tensor
    head: Tensor
    terms: Terms
    grads: tuple[Bin, ...]
    buffers: tuple[Bin, ...]

    @classmethod
    def empty(cls, grads: Mapping[str, Tensor], buffers: Mapping[str, Tensor], terms: Terms) -> Packet:
        """Make a packet for tensors like these, with nothing written into it."""
        kinds = [*_kinds(grads), *_kinds(buffers)]
        length = _TERMS + len(terms)
        head = (length + -length % _ROUND) * _NUMBER.itemsize
        # Where each dtype's sums lie: a tensor begins at a multiple of its item's size.
        sizes = [sum(tensor.numel() for tensor in like) * dtype.itemsize for dtype, _, like in kinds]
        ends = [*accumulate((_padded(size) for size in sizes), initial=head)]
        memory = scratch.memory(ends[-1], next(iter(grads.values())).device)
        bins = tuple(
            Bin(names, like, memory[start : start + size].view(dtype))
            for (dtype, names, like), start, size in zip(kinds, ends, sizes, strict=False)
        )
        numbers = memory[:head].view(_NUMBER)
        mine = len(bins) - len(_kinds(buffers)) if buffers else len(bins)
        return cls(memory, numbers, terms, bins[:mine], bins[mine:])

    @classmethod
    def of(cls, grads: Grads, buffers: Mapping[str, Tensor], samples: int, about: str) -> Packet:
        """Make the packet of one shard.

        Args:
            grads: what it says.
            buffers: those of its buffers that are averaged over the shards.
            samples: how many it has.
            about: what all shards that are added up must have in common.
        """
        packet = cls.empty(grads.grads, buffers, terms_of(grads))
        weight = plain(grads.weight)
        for each in packet.grads:
            each.put(grads.grads, weight)
        for each in packet.buffers:
            each.put(buffers, samples)
        _write_head(packet, grads, weight, about)
        return packet

    def over(self, memory: Tensor) -> Packet:
        """See other memory as a packet of the same layout."""
        start = self.memory.data_ptr()

        def there(tensor: Tensor) -> Tensor:
            first = tensor.data_ptr() - start
            return memory[first : first + tensor.nbytes].view(tensor.dtype)

        grads, buffers = (
            tuple(attrs.evolve(each, sums=there(each.sums)) for each in bins) for bins in (self.grads, self.buffers)
        )
        return Packet(memory, there(self.head), self.terms, grads, buffers)

    def join(self, second: Packet) -> Packet:
        """Add the next shards' packet to this one, and give it back.

        Raises:
            LossError: the loss reported other terms there.
        """
        join_heads(self.head, second.head, self.terms)
        for mine, other in zip((*self.grads, *self.buffers), (*second.grads, *second.buffers), strict=True):
            mine.sums.add_(other.sums)
        return self

    def mean(self, samples: int) -> Grads:
        """Make the gradients of the whole batch, with the averaged buffers; the sums are written into.

        Args:
            samples: of all shards.
        """
        # Numbers, where looking waits for nothing.
        _, weight, *terms = self.head.tolist() if self.head.is_cpu else self.head.clone().unbind()
        count = weight + (weight == 0)  # the mean of nothing is 0
        grads = {name: grad for each in self.grads for name, grad in each.divided(count).items()}
        # Cloned: the tensors of a state share no memory.
        buffers = {name: buffer.clone() for each in self.buffers for name, buffer in each.divided(samples).items()}
        metrics = {
            term.name: scalar(value / count if term.merge == "mean" else value, reported(term.merge, term.dtype))
            for term, value in zip(self.terms, terms, strict=False)
        }
        merges: dict[str, Merge] = {term.name: term.merge for term in self.terms if term.merge != "mean"}
        return Grads(grads, weight, buffers, metrics, merges)


def _kinds(tensors: Mapping[str, Tensor]) -> list[tuple[torch.dtype, tuple[str, ...], tuple[Tensor, ...]]]:
    """Sort tensors by dtype."""
    dtypes = {tensor.dtype: None for tensor in tensors.values()}
    if len(dtypes) == 1:
        return [(summed(next(iter(dtypes))), tuple(tensors), tuple(tensors.values()))]
    chosen = [(dtype, [name for name, tensor in tensors.items() if tensor.dtype == dtype]) for dtype in dtypes]
    return [(summed(dtype), tuple(names), tuple(tensors[name] for name in names)) for dtype, names in chosen]


def _padded(size: int) -> int:
    return size + -size % 64


def _write_head(packet: Packet, grads: Grads, weight: float | Tensor, about: str) -> None:
    head, terms = packet.head, packet.terms
    token = float(crc32(f"{about} {to_text(terms)}".encode()))
    values = [grads.metrics[term.name] for term in terms]
    if head.is_cpu:
        numbers = [
            float(value) * (weight if term.merge == "mean" else 1.0) for value, term in zip(values, terms, strict=True)
        ]
        filling = [0.0] * (len(head) - _TERMS - len(terms))
        head.copy_(torch.tensor([token, float(weight), *numbers, *filling], dtype=_NUMBER))
        return
    head.zero_()
    head[_TOKEN].fill_(token)
    head[_WEIGHT].copy_(weight) if isinstance(weight, Tensor) else head[_WEIGHT].fill_(weight)
    if terms:
        numbers = head[_TERMS : _TERMS + len(terms)]
        numbers.copy_(torch.stack([value.to(numbers, non_blocking=True) for value in values]))
        numbers[: sum(term.merge == "mean" for term in terms)].mul_(head[_WEIGHT])


def join_heads(first: Tensor, second: Tensor, terms: Terms) -> Tensor:
    """Add the second of two heads to the first, and give that back.

    Raises:
        LossError: they are about different things.
    """
    _check(first, second, terms)
    start = _TERMS
    kinds = [term.merge for term in terms]
    if not terms or kinds[-1] in ("mean", "sum"):
        first[_WEIGHT:].add_(second[_WEIGHT:])
        return first
    for merge in _ORDER:
        stop = start + kinds.count(merge)
        _JOIN[merge](first[start:stop], second[start:stop])
        start = stop
    first[_WEIGHT].add_(second[_WEIGHT])
    return first


_JOIN = {
    "mean": Tensor.add_,
    "sum": Tensor.add_,
    "max": lambda first, second: torch.maximum(first, second, out=first),
    "min": lambda first, second: torch.minimum(first, second, out=first),
    "last": Tensor.copy_,
}


def _check(first: Tensor, second: Tensor, terms: Terms) -> None:
    """Refuse to add up what does not belong together, where looking waits for nothing."""
    if first.is_cpu and first[_TOKEN].item() != second[_TOKEN].item():
        raise LossError(
            "expected the loss to report the same terms of each shard, and all processes to be at the same iteration "
            f"of the same run, got {sorted(term.name for term in terms)} of one shard and something else of "
            "another; report every term each time, and give every process the same state and the same data"
        )
