"""The plain attributes of a module: noted before a forward, compared and put back after it.

A forward that remembers in plain Python (a counter, a list, a cache) is not a function
of the state.  What is found here is named in an error, and undone where that is possible.
"""

from __future__ import annotations

from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

# Tensors in plain attributes are looked at as they are, also while a program is being traced: they are no part of it.

Notes: TypeAlias = dict[tuple[str, str], tuple[Any, Any]]
"""(path of an inner module, attribute) -> the value itself, and a copy of what is inside it."""

# RNN layers of torch keep a list of their own weights, made anew from their slots.
_OWN_LISTS = {"_flat_weights", "_flat_weight_refs"}
_KEPT = ("_parameters", "_buffers", "_modules")
_OPAQUE = (type, FunctionType, MethodType, ModuleType, nn.Module)
_DEPTH = 3


@_disable_current_modes()
def note(module: nn.Module) -> Notes:
    """Note every attribute of every inner module.

    The dicts of parameters, buffers and modules are attributes as well: what appears in
    them during a forward is noticed too.
    """
    return {
        (path, name): (value, _members(value) if name in _KEPT else _inside(value, _DEPTH))
        for path, inner in module.named_modules()
        for name, value in inner.__dict__.items()
        if not (name in _OWN_LISTS and isinstance(inner, nn.RNNBase))
    }


@_disable_current_modes()
def restore(module: nn.Module, before: Notes) -> list[str]:
    """Put back what has changed, and name it.

    >>> module = nn.ReLU()
    >>> notes = note(module)
    >>> module.calls = 1
    >>> restore(module, notes), "calls" in vars(module)
    (['calls'], False)
    """
    inner = {path: found for path, found in module.named_modules() if (path, "training") in before}
    after = note(module)
    changed = [place for place in {**before, **after} if not _same(before.get(place), after.get(place))]
    for path, name in changed:
        if (path, name) in before:
            value, content = before[path, name]
            inner[path].__dict__[name] = value
            _refill(value, content)
        elif path in inner:
            inner[path].__dict__.pop(name, None)
    named = (entry for place in changed if place[0] in inner for entry in _entries(place, before, after))
    return sorted({f"{path}.{name}".lstrip(".") for path, name in named})


def _entries(place: tuple[str, str], before: Notes, after: Notes) -> list[tuple[str, str]]:
    """Name the entries of a module's own dicts that differ, and any other attribute itself."""
    path, name = place
    if name not in _KEPT:
        return [place]
    old, new = before[place][1], after[place][1]
    return [(path, key) for key in {**old, **new} if not _same(old.get(key), new.get(key))]


def _members(kept: dict[str, Any]) -> dict[str, tuple[Any, None]]:
    # By identity: a copy of every weight would take as much memory as the model.
    return {name: (item, None) for name, item in kept.items()}


def _inside(value: Any, depth: int) -> Any:
    """Copy what a value holds, as deep as is worth looking."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, _OPAQUE) or not depth:
        return None
    if isinstance(value, dict):
        return {key: (item, _inside(item, depth - 1)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [(item, _inside(item, depth - 1)) for item in value]
    if type(value).__module__ == "builtins":
        return None
    held = vars(value) if hasattr(value, "__dict__") else {}
    return {key: (item, _inside(item, depth - 1)) for key, item in held.items()}


def _same(a: tuple[Any, Any] | None, b: tuple[Any, Any] | None) -> bool:
    return a is not None and b is not None and a[0] is b[0] and _alike(a[1], b[1])


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and _equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    return b is None


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b)


def _refill(value: Any, content: Any) -> None:
    """Put the contents of containers and tensors back in place."""
    if content is None:
        return
    if isinstance(value, Tensor):
        if not value.requires_grad:
            value.copy_(content)
    elif isinstance(value, np.ndarray):
        value[...] = content
    elif isinstance(value, dict):
        value.clear()
        value.update({key: item for key, (item, _) in content.items()})
    elif isinstance(value, list):
        value[:] = [item for item, _ in content]
    elif isinstance(value, set):
        value.clear()
        value.update(item for item, _ in content)
    elif isinstance(content, dict):
        vars(value).clear()
        vars(value).update({key: item for key, (item, _) in content.items()})
    if isinstance(content, dict | list):
        for item, inside in content.values() if isinstance(content, dict) else content:
            _refill(item, inside)
