"""Data sets that live in memory as tensors, of which a whole batch is taken at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# torch spreads a copy of more numbers than this over its threads.  Copying rows is bound by memory, so little is won,
# and on a busy machine threads that wait for each other take a hundred times as long.
_SPREAD = 32 * 1024

# Beyond this many bytes several threads are worth their waiting.
_LARGE = 4 * 1024 * 1024

# What numpy copies in place of numbers of so many bytes; it does not know all of torch's.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class InMemory(ABC):
    """A dataset that a Loader may take as tensors."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """Give all samples at once."""

    def __len__(self) -> int:
        return len(self.tensors())

    def __getitem__(self, index: int) -> Any:
        return self.tensors().row(index)


@attrs.frozen(init=False, repr=False, eq=False)
class Tensors(InMemory):
    """Tensors whose first dimension counts the samples.

    Named ones make batches that are dicts, unnamed ones make tuples.  A batch is always a
    copy: writing into it never changes the dataset.  Workers are possible but not needed.

    Raises:
        ValueError: no tensor, named and unnamed ones together, or unequal lengths.

    >>> data = Tensors(image=torch.zeros(10, 1, 8, 8), label=torch.arange(10))
    >>> data
    Tensors(image=float32[10, 1, 8, 8], label=int64[10])
    >>> data.rows(torch.tensor([3, 1]))["label"]
    tensor([3, 1])
    """

    entries: Mapping[str, Tensor] | tuple[Tensor, ...]

    def __init__(self, *tensors: Tensor, **named: Tensor) -> None:
        values = tensors or tuple(named.values())
        if bool(tensors) == bool(named) or not all(isinstance(value, Tensor) for value in values):
            raise ValueError(
                "expected tensors, either all named or all unnamed, got "
                f"{[type(value).__name__ for value in (*tensors, *named.values())]}; "
                "write Tensors(image=..., label=...) or Tensors(x, y)"
            )
        if {value.shape[:1] for value in values} != {values[0].shape[:1]} or not values[0].ndim:
            raise ValueError(
                "expected tensors of one length (first dimension), got shapes "
                f"{[list(value.shape) for value in values]}; cut them to the same number of samples"
            )
        self.__attrs_init__(dict(named) if named else tensors)  # type: ignore[attr-defined]

    def tensors(self) -> Tensors:
        """Give all samples at once: itself."""
        return self

    def rows(self, indices: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Copy the samples at some indices (int64, shape [n]) into a batch."""
        if isinstance(self.entries, tuple):
            return tuple(_taken(tensor, indices) for tensor in self.entries)
        return {name: _taken(tensor, indices) for name, tensor in self.entries.items()}

    def row(self, index: int) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Copy one sample."""
        if isinstance(self.entries, tuple):
            return tuple(tensor[index].clone() for tensor in self.entries)
        return {name: tensor[index].clone() for name, tensor in self.entries.items()}

    def __len__(self) -> int:
        return len(next(iter(self._named().values())))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensors):
            return NotImplemented
        mine, others = self._named(), other._named()
        return self._kind() == other._kind() and all(torch.equal(mine[name], others[name]) for name in mine)

    def __hash__(self) -> int:
        return hash(self._kind())

    def __repr__(self) -> str:
        return f"Tensors({', '.join(self._kind())})"

    def _named(self) -> Mapping[str, Tensor]:
        if isinstance(self.entries, tuple):
            return {str(place): tensor for place, tensor in enumerate(self.entries)}
        return self.entries

    def _kind(self) -> tuple[str, ...]:
        # Entries without a name have a digit for one here.
        return tuple(
            ("" if name.isdigit() else f"{name}=") + f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
            for name, tensor in self._named().items()
        )


def _taken(tensor: Tensor, indices: Tensor) -> Tensor:
    count = indices.shape[0]
    numbers = count * math.prod(tensor.shape[1:])
    if tensor.is_cpu and _SPREAD < numbers <= _LARGE // tensor.itemsize and tensor.is_contiguous():
        word = _WORDS.get(tensor.itemsize)
        if word is not None:
            # torch's memory, not numpy's: it begins at whole cache lines, on which some kernels' rounding depends.
            rows = torch.empty((count, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
            _copy_rows(tensor.view(word).flatten(1).numpy(), indices.numpy(), rows.view(word).view(count, -1).numpy())
            return rows
    return tensor.index_select(0, indices if tensor.is_cpu else indices.to(tensor.device, non_blocking=True))


def _copy_rows(source: NDArray[Any], indices: NDArray[np.int64], target: NDArray[Any]) -> None:
    # Seen as unsigned, a negative index is a large one.
    if indices.view(np.uint64).max() >= len(source):
        raise IndexError(f"expected indices in [0, {len(source)}), got {indices.min()} to {indices.max()}")
    # "clip" never happens, but with the default numpy would copy twice.
    np.take(source, indices, axis=0, out=target, mode="clip")
