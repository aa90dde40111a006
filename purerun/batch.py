"""What a batch is: a tensor, or a nest of dicts, lists and tuples that holds some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class BatchError(ValueError):
    """A batch does not hold what was asked of it."""


def leaves(batch: Any) -> Iterator[Tensor]:
    """Walk over the tensors of a batch, in its own order.

    >>> [tuple(t.shape) for t in leaves({"image": torch.zeros(2, 3), "label": [torch.zeros(2)]})]
    [(2, 3), (2,)]
    """
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from leaves(value)


def size(batch: Any) -> int:
    """Count the samples of a batch: the first dimension of its first tensor.

    A batch without any tensor that has a dimension counts the items of its first list
    (the lists of samples that detection pipelines make), and else as one sample.

    >>> size({"image": torch.zeros(5, 3)}), size([["a", "b"]]), size(torch.zeros(()))
    (5, 2, 1)
    """
    first = batch
    while isinstance(first, dict | list | tuple) and first:
        first = next(iter(first.values())) if isinstance(first, dict) else first[0]
    # Nearly always the first thing in a batch is such a tensor; asked for at every step.
    if isinstance(first, Tensor) and first.ndim:
        return first.shape[0]
    return next((tensor.shape[0] for tensor in leaves(batch) if tensor.ndim), _samples(batch))


def _samples(batch: Any) -> int:
    while isinstance(batch, Mapping | list | tuple) and batch:
        inner = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
        if isinstance(batch, list) and not isinstance(inner, Mapping | list | tuple):
            return len(batch)
        batch = inner
    return 1


def move(batch: Any, device: torch.device) -> Any:
    """Put every tensor of a batch on a device; the nest keeps its shape.

    >>> move({"image": torch.zeros(2)}, torch.device("cpu"))["image"].device.type
    'cpu'
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(value, device) for value in batch)
    return batch


def entry(batch: Any, which: str | int) -> Any:
    """Take one entry of a batch, by name or by place (0 is the input, 1 the target).

    >>> entry({"image": 1, "label": 2}, 1), entry({"image": 1, "label": 2}, "image")
    (2, 1)
    >>> entry((1, 2), "label")
    Traceback (most recent call last):
    ...
    purerun.batch.BatchError: expected a batch with an entry 'label', got a tuple of 2; name an entry it has
    """
    if isinstance(batch, Mapping):
        names = list(batch)
        name = names[which] if isinstance(which, int) and which < len(names) else which
        if name in batch:
            return batch[name]
        raise BatchError(f"expected a batch with an entry {which!r}, got one with {names}; name an entry it has")
    if isinstance(batch, list | tuple):
        if isinstance(which, int) and which < len(batch):
            return batch[which]
        raise BatchError(
            f"expected a batch with an entry {which!r}, got a {type(batch).__name__} of {len(batch)}; "
            "name an entry it has"
        )
    if which == 0:
        return batch
    raise BatchError(f"expected a batch with an entry {which!r}, got one {type(batch).__name__}; name an entry it has")


def describe(batch: Any) -> str:
    """Say what a batch holds, for a message.

    >>> describe({"image": torch.zeros(2, 3), "name": "a"})
    '{image: float32 [2, 3], name: str}'
    """
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {list(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        inner = ", ".join(describe(value) for value in batch[:4]) + (", ..." if len(batch) > 4 else "")
        return f"({inner},)" if len(batch) == 1 else f"({inner})"
    return type(batch).__name__
