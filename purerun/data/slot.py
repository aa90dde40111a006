"""The state of a stream as a tensor of fixed size: JSON, so that data never becomes code."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

CAPACITY = 64 * 1024
"""Bytes of a slot unless told otherwise."""

# The first bytes of a slot say how many follow; none means that nothing was stored yet.
_PREFIX = 8


def empty(capacity: int = CAPACITY) -> Tensor:
    """Make a slot that holds nothing: uint8, shape [capacity]."""
    return torch.zeros(capacity, dtype=torch.uint8, device="cpu")


def pack(state: Any, capacity: int = CAPACITY) -> Tensor:
    """Write a nest of dicts, lists, tuples, strings, numbers, bytes, arrays and tensors into a slot.

    Raises:
        ValueError: it takes more bytes than the slot has.
        TypeError: something in it is not data.

    >>> unpack(pack({"shard": 3, "rng": (1, b"ab")}))
    {'shard': 3, 'rng': (1, b'ab')}
    """
    text = json.dumps(_coded(state), separators=(",", ":")).encode()
    if len(text) + _PREFIX > capacity:
        raise ValueError(
            f"expected a stream's state of at most {capacity - _PREFIX} bytes, got {len(text)}; "
            "give the source a larger capacity, or make its state_dict smaller"
        )
    filled = len(text).to_bytes(_PREFIX, "little") + text
    return torch.from_numpy(np.frombuffer(filled.ljust(capacity, b"\0"), np.uint8).copy())


def unpack(slot: Tensor) -> Any:
    """Read what was packed; None from an empty slot.

    >>> unpack(empty()) is None
    True
    """
    data = slot.cpu().numpy().tobytes()
    length = int.from_bytes(data[:_PREFIX], "little")
    return _decoded(json.loads(data[_PREFIX : _PREFIX + length])) if length else None


def _coded(value: Any) -> Any:
    """Mark what JSON lacks: a list ["kind", ...] stands for everything but plain numbers and strings."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return ["dict", [[_coded(name), _coded(inner)] for name, inner in value.items()]]
        case list() | tuple():
            return [type(value).__name__ if type(value) is tuple else "list", [_coded(inner) for inner in value]]
        case bytes():
            return ["bytes", base64.b64encode(value).decode()]
        case Tensor():
            return ["tensor", _coded(value.detach().cpu().numpy())[1]]
        case np.ndarray() if value.dtype.kind in "biuf":
            return ["array", [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]]
        case np.generic():
            return _coded(value.item())
    raise TypeError(
        f"expected data in a stream's state, got {type(value).__name__}; "
        "let its state_dict return dicts, lists, strings, numbers, bytes, arrays or tensors"
    )


def _decoded(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    match kind:
        case "dict":
            return {_decoded(name): _decoded(inner) for name, inner in content}
        case "tuple":
            return tuple(map(_decoded, content))
        case "bytes":
            return base64.b64decode(content)
        case "tensor":
            return torch.from_numpy(_array(*content))
        case "array":
            return _array(*content)
    return [_decoded(inner) for inner in content]


def _array(dtype: str, shape: list[int], content: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(content), np.dtype(dtype)).reshape(shape).copy()
