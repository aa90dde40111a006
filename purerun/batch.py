"""What a batch is: a tensor, or a nest of dicts, lists and tuples that holds some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
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


def cut(batch: Any, count: int) -> list[Any]:
    """Cut a batch into `count` runs of successive samples, as `torch.tensor_split` does: the first ones are larger.

    Tensors are cut along their first dimension (views, not copies), and so is a list of as many items as there
    are samples; dicts, tuples and other lists are gone into.  What has no dimension belongs to every part.  Of
    fewer samples than parts, the last parts are empty.

    >>> [part["label"].tolist() for part in cut({"label": torch.arange(5), "name": [*"abcde"]}, 2)]
    [[0, 1, 2], [3, 4]]
    >>> [part["name"] for part in cut({"label": torch.arange(2), "name": ["a", "b"]}, 3)]
    [['a'], ['b'], []]

    Raises:
        BatchError: something in it has another number of samples, or may be cut in two ways.
    """
    samples = size(batch)
    least, larger = divmod(samples, count)
    ends = [least * place + min(place, larger) for place in range(count + 1)]
    spans = [slice(*span) for span in pairwise(ends)]
    # A list at the top holds the entries of a batch (the input, the target), whatever its length.
    if isinstance(batch, list) and next(leaves(batch), None) is not None:
        return [list(part) for part in _cut(tuple(batch), spans, samples)]
    return _cut(batch, spans, samples)


def _cut(batch: Any, spans: list[slice], samples: int) -> list[Any]:
    if isinstance(batch, Tensor) and batch.ndim:
        _fits(batch, samples)
        return [batch[span] for span in spans]
    if isinstance(batch, list) and _holds_samples(batch, samples):
        return [batch[span] for span in spans]
    if isinstance(batch, Mapping):
        values = [_cut(value, spans, samples) for value in batch.values()]
        return [dict(zip(batch, part, strict=True)) for part in _across(values, spans)]
    if isinstance(batch, list | tuple):
        parts = _across([_cut(value, spans, samples) for value in batch], spans)
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return [type(batch)(*part) for part in parts]
        return [type(batch)(part) for part in parts]
    return [batch for _ in spans]


def _across(values: list[list[Any]], spans: list[slice]) -> list[tuple[Any, ...]]:
    return [tuple(parts[place] for parts in values) for place in range(len(spans))]


def _fits(tensor: Tensor, samples: int) -> None:
    if tensor.shape[0] != samples:
        raise BatchError(
            f"expected a batch whose tensors all have {samples} samples, as its first one has, got {describe(tensor)} "
            "in it; keep what belongs to all samples in the model, or cut the batch by hand"
        )


def _holds_samples(items: list[Any], samples: int) -> bool:
    """Say whether a list holds an item for each sample, and not tensors that each hold all of them."""
    if len(items) != samples:
        return False
    tensors = [tensor for tensor in leaves(items) if tensor.ndim]
    if samples > 1 and tensors and all(tensor.shape[0] == samples for tensor in tensors):
        raise BatchError(
            f"expected a list that is clearly one of samples or of tensors, got {samples} entries with {samples} rows "
            "each in a batch of as many samples; make it a tuple, whose entries are each cut, or choose another size"
        )
    return True


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
