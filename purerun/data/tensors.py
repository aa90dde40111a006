"""Data sets that live in memory as tensors, of which a whole batch is taken at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor


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
    return tensor.index_select(0, indices.to(tensor.device, non_blocking=True))
