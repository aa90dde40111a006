"""Parcels: a batch on its way from a worker process, in as few pieces as it can travel in.

Every tensor that a worker hands over costs a file descriptor and several messages between processes.  A small batch
goes through the pipe as plain bytes instead, a large one in one piece of shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from purerun.data.nest import mapped, pinned

# Below this many bytes two copies through a pipe are quicker than one piece of shared memory (measured: at 0.4 MB
# two to one, at 1.6 MB one to three).
_SMALL = 512 * 1024

# Where a tensor begins in a buffer: every dtype and vector instruction is content with it.
_ALIGNED = 64


class Place(NamedTuple):
    """Where a tensor lies in a parcel's buffer."""

    start: int
    dtype: torch.dtype
    shape: torch.Size


@attrs.frozen
class Parcel:
    """A batch taken apart: its nest with places instead of tensors, and one buffer.

    Tensors that would not come out as they were (strided, of a subclass), and large ones that
    already lie in shared memory, stay in the nest and travel by torch's own means.
    """

    nest: Any
    buffer: NDArray[np.uint8] | Tensor

    def pin_memory(self) -> Parcel:
        """Put all of it into page-locked memory; torch's pinning thread calls this."""
        return Parcel(pinned(self.nest), pinned(torch.as_tensor(self.buffer)))

    def unwrapped(self) -> Any:
        """Make the batch again."""
        buffer = self.buffer if isinstance(self.buffer, Tensor) else _aligned(self.buffer)
        return mapped(lambda place: _view(buffer, place), self.nest, of=Place)


def parcel(batch: Any) -> Parcel:
    """Take a batch apart.

    >>> batch = {"x": torch.arange(3), "name": "a"}
    >>> parcel(batch).unwrapped()
    {'x': tensor([0, 1, 2]), 'name': 'a'}
    """
    simple = [tensor for tensor in _tensors(batch) if _is_simple(tensor)]
    small = sum(tensor.nbytes for tensor in simple) <= _SMALL
    packed = [tensor for tensor in simple if small or not tensor.is_shared()]
    places, size = {}, 0
    for tensor in packed:
        places[id(tensor)] = Place(size, tensor.dtype, tensor.shape)
        size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    buffer = np.empty(size, np.uint8) if size <= _SMALL else _shared(size)
    flat = torch.as_tensor(buffer)
    for tensor in packed:
        _view(flat, places[id(tensor)]).copy_(tensor)
    return Parcel(mapped(lambda tensor: places.get(id(tensor), tensor), batch), buffer)


def _tensors(batch: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    mapped(lambda tensor: found.append(tensor) or tensor, batch)
    return iter(found)


def _is_simple(tensor: Tensor) -> bool:
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and tensor.device.type == "cpu"
    return plain and tensor.is_contiguous() and not tensor.requires_grad and not tensor.is_quantized


def _shared(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu").share_memory_()


def _aligned(buffer: NDArray[np.uint8]) -> Tensor:
    # What comes out of a pipe begins anywhere; on where a tensor begins, some kernels' rounding depends.
    memory = torch.empty(len(buffer), dtype=torch.uint8, device="cpu")
    memory.numpy()[:] = buffer
    return memory


def _view(buffer: Tensor, place: Place) -> Tensor:
    bytes_ = place.shape.numel() * place.dtype.itemsize
    if not bytes_:
        return torch.empty(place.shape, dtype=place.dtype, device="cpu")
    return buffer[place.start : place.start + bytes_].view(place.dtype).view(place.shape)
