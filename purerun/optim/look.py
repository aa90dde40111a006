"""Which cell a thing that an optimizer remembers needs, found by looking at its values."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from purerun.optim.cells import (
    ABSENT,
    DTYPES,
    Branch,
    Cell,
    Constant,
    Either,
    Row,
    Scalar,
    Stack,
    Unkeepable,
    Whole,
    said,
)


def seen(value: Any) -> Cell:
    """Describe one value.

    >>> seen(3), seen([1.0, None])
    (Scalar(type=<class 'int'>), Row(cells=(Scalar(type=<class 'float'>), Constant(value=None)), grows=False, ...))
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise Unkeepable(f"a dense tensor, got {said(value)}")
        return Whole(value.shape, value.dtype, value.device)
    if type(value) in DTYPES:
        return Scalar(type(value))
    if type(value) in (list, tuple):
        return Row(tuple(map(seen, value)), type=type(value))
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return Branch({key: seen(item) for key, item in value.items()})
    if value is None or value is ABSENT or isinstance(value, str):
        return Constant(value)
    raise Unkeepable(f"tensors, numbers, None, lists and dicts of them, got {said(value)}")


def merged(a: Cell, b: Cell) -> Cell:
    """Describe what is sometimes like `a` and sometimes like `b`.

    >>> [cell.kind for cell in merged(seen(None), seen(torch.zeros(2))).cells]
    ['=None', 'tensor']
    """
    if a == b:
        return a
    if isinstance(a, Row) and isinstance(b, Row) and a.type is b.type:
        longer, shorter = (a.cells, b.cells) if len(a.cells) >= len(b.cells) else (b.cells, a.cells)
        joint = tuple(merged(one, two) for one, two in zip(longer, shorter, strict=False))
        return Row((*joint, *longer[len(shorter) :]), a.grows or b.grows or len(longer) > len(shorter), a.type)
    if isinstance(a, Branch) and isinstance(b, Branch):
        nothing = Constant(ABSENT)
        keys = sorted({*a.cells, *b.cells})
        return Branch({key: merged(a.cells.get(key, nothing), b.cells.get(key, nothing)) for key in keys})
    kinds = {cell.kind: cell for cell in _options(a)}
    for cell in _options(b):
        old = kinds.get(cell.kind, cell)
        if isinstance(old, Whole) and old != cell:
            raise Unkeepable(f"tensors of one shape, got {_size(old)} and {_size(cell)}")
        kinds[cell.kind] = merged(old, cell)
    return Either(tuple(kinds[kind] for kind in sorted(kinds))) if len(kinds) > 1 else next(iter(kinds.values()))


def roomy(cell: Cell, like: Tensor) -> Cell:
    """Give a number that has come as two types a place for each type of number.

    What is an int here and a 0-d tensor there (the step length of a line search) will be a
    float elsewhere.

    Args:
        cell: any cell.
        like: a tensor of the dtype and device that a 0-d tensor would have.
    """
    kinds = {option.kind: option for option in _options(cell)}
    tensor = kinds.get("tensor")
    numbers = [kind for kind in ("int", "float") if kind in kinds]
    if isinstance(tensor, Whole) and not tensor.shape:
        numbers.append("tensor")
    if len(numbers) < 2:
        return cell
    every = {"int": Scalar(int), "float": Scalar(float), "tensor": Whole(torch.Size(), like.dtype, like.device)}
    kinds = every | kinds
    return Either(tuple(kinds[kind] for kind in sorted(kinds)))


def settled(cell: Cell, capacity: int | None) -> Cell:
    """Give lists their final form: like items are stacked, and one that grows gets its capacity.

    Raises:
        Unkeepable: a list grows and nobody said how far, or its items differ in shape.
    """
    if isinstance(cell, Either):
        return Either(tuple(settled(option, capacity) for option in cell.cells))
    if isinstance(cell, Branch):
        return Branch({key: settled(inner, capacity) for key, inner in cell.cells.items()})
    if not isinstance(cell, Row):
        return cell
    if cell.grows and capacity is None:
        raise Unkeepable("a list of constant length, got one that grows; say how far with capacity=")
    try:
        joint = functools.reduce(merged, cell.cells, cell.cells[0]) if cell.cells else None
    except Unkeepable:
        if cell.grows:
            raise
        joint = None
    if joint is None or (joint.blank() is None and not cell.grows):
        return Row(tuple(settled(item, capacity) for item in cell.cells), type=cell.type)
    length = len(cell.cells)
    return Stack(max(length, capacity or 0) if cell.grows else length, settled(joint, capacity), cell.type)


def _options(cell: Cell) -> tuple[Cell, ...]:
    return cell.cells if isinstance(cell, Either) else (cell,)


def _size(cell: Cell) -> str:
    return f"{cell.dtype} {list(cell.shape)}" if isinstance(cell, Whole) else cell.kind
