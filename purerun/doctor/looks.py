"""What a value looks like: a text that is equal for equal contents, also from call to call."""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import attrs
import numpy as np
import torch
from torch import Tensor

from purerun.doctor.generators import kind_of
from purerun.identity import describe
from purerun.state import State, leaves

Opaque: TypeAlias = Callable[[Any, int], str]
"""Says an object that is no plain data, down to a depth."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, range, slice)
"""Values that say themselves."""

COLLECTIONS = (list, tuple, set, frozenset, deque)

# Objects of the standard library that compare by value, such as dates, paths and UUIDs, say themselves too.
_VALUES = sys.stdlib_module_names - {"builtins", "types"}

_DEPTH = 6

# A look that only has to find a line is taken after each one: it takes a sample of tensors beyond so many bytes, and
# the identities of the entries of collections beyond so many.
_LARGE = 1024 * 1024
_STRIDE = 97
_MANY = 4096


def outside(value: Any) -> str:
    """Look at data by content, and at any other object by its type: for local names, which differ in objects only.

    >>> outside([1, torch.ones(2)]) == outside([1, torch.ones(2)]), outside(object())
    (True, 'object')
    """
    return _look(value, _by_type, _DEPTH)


def same_object(value: Any) -> str:
    """Look at data by content, and at any other object by its identity: for places where code remembers."""
    return _look(value, _by_identity, _DEPTH)


def inside(value: Any) -> str:
    """Look at data by content, all of it, and at any other object by what it holds: for results.

    >>> from argparse import Namespace
    >>> inside(Namespace(x=1)), inside(Namespace(x=1)) == inside(Namespace(x=2))
    ('Namespace {x: 1}', False)
    """
    return _look(value, _by_contents, _DEPTH)


def _by_type(value: Any, _depth: int) -> str:
    kind = type(value)
    if kind.__module__ in _VALUES and kind.__eq__ is not object.__eq__ and " at 0x" not in repr(value):
        return repr(value)
    return kind.__qualname__


def _by_identity(value: Any, _depth: int) -> str:
    return f"{type(value).__qualname__} at {id(value)}"


def _by_contents(value: Any, depth: int) -> str:
    if not depth or isinstance(value, type | FunctionType | MethodType | ModuleType):
        return _by_type(value, depth)
    held = dict(getattr(value, "__dict__", {}))
    if attrs.has(type(value)):
        held |= {field.name: getattr(value, field.name, None) for field in attrs.fields(type(value))}
    return f"{type(value).__qualname__} {_mapping(held, _by_contents, depth - 1)}"


def _look(value: Any, opaque: Opaque, depth: int) -> str:
    whole = opaque is _by_contents
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, State):
        return str({"/".join(path): describe(leaf) for path, leaf in leaves(value, report=True)})
    if isinstance(value, Tensor):
        return _tensor(value, opaque)
    if isinstance(value, np.ndarray | np.generic):
        return _array(np.asarray(value), opaque, depth)
    if (kind := kind_of(value)) is not None:
        state = kind.read(value)  # of Python's, a tuple of 625 numbers
        return (
            f"{type(value).__qualname__} {_hash(repr(state) if type(state) is tuple else _look(state, opaque, depth))}"
        )
    if not depth or not isinstance(value, (Mapping, *COLLECTIONS)):
        return opaque(value, depth)
    if len(value) > _MANY and not whole:
        entries = value.values() if isinstance(value, Mapping) else value
        return f"{type(value).__qualname__} of {len(value)}: {hash(tuple(map(id, entries)))}"
    return _mapping(value, opaque, depth) if isinstance(value, Mapping) else _listed(value, opaque, depth)


def _mapping(value: Mapping[Any, Any], opaque: Opaque, depth: int) -> str:
    looks = (
        f"{key if isinstance(key, PLAIN) else type(key).__qualname__}: {_look(inner, opaque, depth - 1)}"
        for key, inner in value.items()
    )
    return "{" + ", ".join(looks) + "}"


def _listed(value: Any, opaque: Opaque, depth: int) -> str:
    looks = [_look(inner, opaque, depth - 1) for inner in value]
    return f"[{', '.join(sorted(looks) if isinstance(value, set | frozenset) else looks)}]"


def _tensor(value: Tensor, opaque: Opaque) -> str:
    # A copy has another version; of the very same tensor it tells of most writes.
    form = f"{value.dtype} {list(value.shape)} {value._version if opaque is _by_identity else ''}"
    if torch._C._functorch.is_functorch_wrapped_tensor(value) or value.is_meta:
        return form
    try:
        if value.nbytes > _LARGE and opaque is not _by_contents:
            return f"{form} {describe(value.detach().flatten()[::_STRIDE])}"
        return describe(value)
    except (RuntimeError, TypeError):  # a layout without plain bytes
        return f"{form} {value!r}"


def _array(value: np.ndarray[Any, Any], opaque: Opaque, depth: int) -> str:
    if value.dtype.hasobject:
        return f"{value.shape} {_look(value.ravel().tolist(), opaque, max(depth - 1, 1))}"
    sample = value.ravel()[::_STRIDE] if value.nbytes > _LARGE and opaque is not _by_contents else value
    return f"{value.dtype} {value.shape} {_hash(np.ascontiguousarray(sample).tobytes())}"


def _hash(content: str | bytes) -> str:
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=16).hexdigest()
