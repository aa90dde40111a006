"""Functions of the tensors of a batch, whatever nest of dicts, lists and tuples holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from purerun import batch as _batch


def mapped(function: Callable[[Any], Any], batch: Any, *, of: type = Tensor) -> Any:
    """Apply a function to every tensor of a batch (or everything `of` a type); the nest keeps its shape.

    >>> mapped(torch.numel, {"image": torch.zeros(2, 3), "name": "a"})
    {'image': 6, 'name': 'a'}
    """
    if isinstance(batch, of):
        return function(batch)
    return _rebuilt(batch, lambda inner: mapped(function, inner, of=of))


def cut(batch: Any, start: int, stop: int) -> Any:
    """Take the samples `start` to `stop` of a batch: views, not copies.

    Tensors and lists as long as the batch are cut; what has no sample dimension (numbers,
    strings, tensors without a dimension) is kept as it is.

    Raises:
        ValueError: a tensor has another first dimension than the batch.

    >>> cut({"x": torch.arange(5), "name": list("abcde"), "scale": 2.0}, 1, 3)
    {'x': tensor([1, 2]), 'name': ['b', 'c'], 'scale': 2.0}
    """
    return _cut(batch, start, stop, _batch.size(batch))


def pinned(batch: Any) -> Any:
    """Put every tensor of a batch into page-locked memory, where there is an accelerator to copy to."""
    return mapped(Tensor.pin_memory, batch) if torch.accelerator.is_available() else batch


def replaced(batch: Any, which: str | int, value: Any) -> Any:
    """Make a batch in which one entry, named as `purerun.batch.entry` names it, is another.

    >>> replaced({"image": 1, "label": 2}, "image", 3), replaced((1, 2), 0, 3)
    ({'image': 3, 'label': 2}, (3, 2))
    """
    if isinstance(batch, Mapping):
        name = list(batch)[which] if isinstance(which, int) and which not in batch else which
        return _updated(batch, {name: value})
    if isinstance(batch, list | tuple):
        return _like(batch, [value if place == which else old for place, old in enumerate(batch)])
    return value


def _cut(batch: Any, start: int, stop: int, size: int) -> Any:
    if isinstance(batch, Tensor):
        return _slice(batch, start, stop, size)
    if isinstance(batch, list) and len(batch) == size and next(_batch.leaves(batch), None) is None:
        return batch[start:stop]
    return _rebuilt(batch, lambda inner: _cut(inner, start, stop, size))


def _slice(tensor: Tensor, start: int, stop: int, size: int) -> Tensor:
    if tensor.ndim and tensor.shape[0] != size:
        raise ValueError(
            f"expected tensors of {size} samples, got one of shape {list(tensor.shape)} in the batch; "
            "give every tensor of a batch the same first dimension"
        )
    return tensor[start:stop] if tensor.ndim else tensor


def _rebuilt(batch: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        return _updated(batch, {name: function(inner) for name, inner in batch.items()})
    if isinstance(batch, list | tuple):
        return _like(batch, [function(inner) for inner in batch])
    return batch


def _like(batch: Any, values: list[Any]) -> Any:
    named = isinstance(batch, tuple) and hasattr(batch, "_fields")
    return type(batch)(*values) if named else type(batch)(values)


def _updated(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    """Make a mapping of the same kind with new values."""
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return {**batch, **values}
    other = copy(batch)
    other.update(values)
    return other
