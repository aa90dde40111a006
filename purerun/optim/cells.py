"""How one thing that an optimizer remembers is kept as tensors whose shapes never change.

An optimizer of torch may remember anything: tensors, Python numbers, None, lists that grow.
A cell describes such a thing, keeps its value in a *leaf* (a tensor, or a dict of leaves) and
gives the value back with its own type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import attrs
import torch
from torch import Tensor

from purerun.state import lazy_clone

Leaf: TypeAlias = Tensor | dict[str, Any] | None
"""Where a value is kept; None for a value that needs no place."""


class Unkeepable(TypeError):
    """A value has a type, shape or length that its cell has no place for."""


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
"""The value of an entry that is not there."""


class Cell(ABC):
    """A description of a value, which keeps it in a leaf."""

    kind: ClassVar[str]

    @abstractmethod
    def blank(self) -> Leaf:
        """Make the leaf of a value that is not there yet."""

    @abstractmethod
    def load(self, leaf: Any) -> Any:
        """Return the value in a leaf; a tensor may be written into, and then writes into the leaf."""

    @abstractmethod
    def keep(self, value: Any, leaf: Any) -> Leaf:
        """Return the leaf of a value, given the old leaf.

        Raises:
            Unkeepable: the value is not what the cell describes.
        """


@attrs.frozen
class Whole(Cell):
    """A tensor.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        device: its device.
    """

    kind: ClassVar[str] = "tensor"
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def blank(self) -> Tensor:
        """Make zeros."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def load(self, leaf: Tensor) -> Tensor:
        """Return the leaf itself."""
        return leaf

    def keep(self, value: Any, leaf: Tensor) -> Tensor:
        """Keep the leaf if it was written into, or else a clone of another tensor."""
        if value is leaf:
            return leaf
        if not isinstance(value, Tensor) or value.shape != self.shape or value.dtype != self.dtype:
            raise Unkeepable(f"a tensor of {self.dtype} {list(self.shape)}, got {said(value)}")
        return lazy_clone(value.detach())  # it may be the gradient itself, or a parameter


DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


@attrs.frozen
class Scalar(Cell):
    """A Python number.

    Attributes:
        type: bool, int or float.
    """

    type: type

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The name of the type."""
        return self.type.__name__

    def blank(self) -> Tensor:
        """Make a 0-d zero on the CPU."""
        return torch.zeros((), dtype=DTYPES[self.type])

    def load(self, leaf: Tensor) -> float:
        """Return the number."""
        return leaf.item()

    def keep(self, value: Any, leaf: Tensor) -> Tensor:
        """Keep the number: float64 and int64 hold every float, and every int up to 2**63."""
        if type(value) is not self.type:
            raise Unkeepable(f"a {self.kind}, got {said(value)}")
        return torch.tensor(value, dtype=DTYPES[self.type])


@attrs.frozen
class Constant(Cell):
    """A value that never changes: None, a word, nothing at all.

    Attributes:
        value: the value.
    """

    value: Any

    @property
    def kind(self) -> str:  # type: ignore[override]
        """One kind for each value."""
        return kind_of(self.value)

    def blank(self) -> None:
        """Need no place."""

    def load(self, leaf: None) -> Any:
        """Return the value."""
        return self.value

    def keep(self, value: Any, leaf: None) -> None:
        """Keep nothing."""
        if type(value) is not type(self.value) or value != self.value:
            raise Unkeepable(f"{self.value!r} as always before, got {said(value)}")


@attrs.frozen
class Either(Cell):
    """A value of one of several kinds: a flag says which, and each kind has its place.

    Attributes:
        cells: a cell for each kind, by its place in the order in which the flag counts.
    """

    kind: ClassVar[str] = "either"
    cells: tuple[Cell, ...]

    def blank(self) -> dict[str, Leaf]:
        """Make a place for each kind."""
        return self._leaf(0, {})

    def load(self, leaf: Mapping[str, Any]) -> Any:
        """Return the value of the kind that the flag says."""
        cell = self.cells[int(leaf["kind"])]
        return cell.load(leaf.get(cell.kind))

    def keep(self, value: Any, leaf: Mapping[str, Any]) -> dict[str, Leaf]:
        """Keep a value in the place of its kind; the other places are zero, so that equal means equal bits."""
        kind = kind_of(value)
        for index, cell in enumerate(self.cells):
            if cell.kind == kind:
                kept = cell.keep(value, leaf.get(kind))
                return self._leaf(index, {} if kept is None else {kind: kept})
        raise Unkeepable(f"one of {[cell.kind for cell in self.cells]}, got {said(value)}")

    def _leaf(self, index: int, kept: dict[str, Leaf]) -> dict[str, Leaf]:
        blanks = {cell.kind: cell.blank() for cell in self.cells if cell.kind not in kept}
        there = {kind: leaf for kind, leaf in {**blanks, **kept}.items() if leaf is not None}
        return {"kind": torch.tensor(index), **dict(sorted(there.items()))}


@attrs.frozen
class Row(Cell):
    """A list whose items have a cell each.

    Attributes:
        cells: the cells.
        grows: whether lists of different lengths have been seen.
        type: list or tuple.
    """

    cells: tuple[Cell, ...]
    grows: bool = False
    type: type = list

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The name of the type."""
        return self.type.__name__

    def blank(self) -> Leaf:
        """Make a place for each item."""
        return _present({str(place): cell.blank() for place, cell in enumerate(self.cells)})

    def load(self, leaf: Mapping[str, Any] | None) -> Any:
        """Return the list."""
        return self.type(cell.load(_at(leaf, str(place))) for place, cell in enumerate(self.cells))

    def keep(self, value: Any, leaf: Mapping[str, Any] | None) -> Leaf:
        """Keep the items."""
        if type(value) is not self.type or len(value) != len(self.cells):
            raise Unkeepable(f"a {self.kind} of {len(self.cells)} items, got {said(value)}")
        pairs = enumerate(zip(self.cells, value, strict=True))
        return _present({str(place): cell.keep(item, _at(leaf, str(place))) for place, (cell, item) in pairs})


@attrs.frozen
class Stack(Cell):
    """A list of like items, up to a fixed number of them.

    Attributes:
        capacity: the most items that it holds.
        cell: what each item is like.
        type: list or tuple.
    """

    capacity: int
    cell: Cell
    type: type = list

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The name of the type."""
        return self.type.__name__

    def blank(self) -> dict[str, Leaf]:
        """Make an empty stack."""
        return self._leaf([])

    def load(self, leaf: Mapping[str, Any]) -> Any:
        """Return the list.  Its tensors are copies: where a tensor lies may change the last bit of a dot product."""
        return self.type(self.cell.load(_taken(leaf.get("items"), place)) for place in range(int(leaf["count"])))

    def keep(self, value: Any, leaf: Mapping[str, Any]) -> dict[str, Leaf]:
        """Keep the items, and how many there are."""
        if type(value) is not self.type:
            raise Unkeepable(f"a {self.kind}, got {said(value)}")
        if len(value) > self.capacity:
            raise Unkeepable(f"a {self.kind} of at most {self.capacity} items, got {len(value)}; see capacity=")
        return self._leaf([self.cell.keep(item, self.cell.blank()) for item in value])

    def _leaf(self, leaves: list[Leaf]) -> dict[str, Leaf]:
        rest = [self.cell.blank()] * (self.capacity - len(leaves))
        items = _stacked([*leaves, *rest])
        return {"count": torch.tensor(len(leaves)), **({} if items is None else {"items": items})}


@attrs.frozen
class Branch(Cell):
    """A dict.

    Attributes:
        cells: a cell for each key.
    """

    kind: ClassVar[str] = "dict"
    cells: Mapping[str, Cell]

    def blank(self) -> Leaf:
        """Make a place for each key."""
        return _present({key: cell.blank() for key, cell in self.cells.items()})

    def load(self, leaf: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the dict, without the keys whose value is not there."""
        values = {key: cell.load(_at(leaf, key)) for key, cell in self.cells.items()}
        return {key: value for key, value in values.items() if value is not ABSENT}

    def keep(self, value: Any, leaf: Mapping[str, Any] | None) -> Leaf:
        """Keep the values."""
        if not isinstance(value, dict) or value.keys() - self.cells.keys():
            raise Unkeepable(f"a dict of {sorted(self.cells)}, got {said(value)}")
        kept = {key: cell.keep(value.get(key, ABSENT), _at(leaf, key)) for key, cell in self.cells.items()}
        return _present(kept)


def kind_of(value: Any) -> str:
    """Name the kind of cell that a value has.

    >>> kind_of(3), kind_of(None), kind_of([])
    ('int', '=None', 'list')
    """
    if isinstance(value, Tensor):
        return "tensor"
    if type(value) in (*DTYPES, list, tuple):
        return type(value).__name__
    if isinstance(value, dict):
        return "dict"
    return "absent" if value is ABSENT else f"={value!r}"


def said(value: Any) -> str:
    """Say a value in a message.

    >>> said(torch.zeros(2)), said(1.0)
    ('a tensor of torch.float32 [2]', '1.0 (float)')
    """
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} {list(value.shape)}"
    return f"{value!r} ({type(value).__name__})"


def _present(leaves: dict[str, Leaf]) -> dict[str, Leaf] | None:
    # Never an empty dict: a file of tensors would lose it.
    return {key: leaf for key, leaf in leaves.items() if leaf is not None} or None


def _at(leaf: Mapping[str, Any] | None, key: str) -> Any:
    return leaf.get(key) if leaf else None


def _stacked(leaves: list[Any]) -> Any:
    if isinstance(leaves[0], dict):
        return {key: _stacked([leaf[key] for leaf in leaves]) for key in leaves[0]}
    return None if leaves[0] is None else torch.stack(leaves)


def _taken(leaf: Any, place: int) -> Any:
    if isinstance(leaf, dict):
        return {key: _taken(inner, place) for key, inner in leaf.items()}
    return None if leaf is None else leaf[place].clone()
