"""A recipe as data: every value that it holds, defaults too, as tables to read and to compare, never to execute."""

from __future__ import annotations

import functools
import hashlib
import math
import types
from collections.abc import Iterator, Mapping, Sequence, Set, Sized
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import tomli_w
import torch
from torch import Tensor

from purerun.identity import read_bytes
from purerun.recipe.module import Module
from purerun.recipe.tree import branches

# No argument and no field can have this name, because it is a keyword of Python.
CLASS = "class"

_EDGE = 32 * 2**20  # bytes
_LONGEST = 1000  # items


class Difference(NamedTuple):
    """A value that two recipes do not share; None where one has no such value."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_short(self.old)} -> {_short(self.new)}"


def resolved(value: Any) -> Any:
    """Say a part of a recipe as data: tables, arrays, strings and numbers.

    A frozen value is a table of its fields, with its qualified name under `class`; so is a
    `Module` or a partial function, with the name of what it calls.  Functions are their
    qualified names; a tensor is its dtype, shape and the first digits of a hash (of its first and
    last 32 MiB, when it is larger); so is an array of more than 1000 items.  What is None is
    left out.

    >>> from purerun.schedule import Constant
    >>> resolved({"schedule": (Constant(0.5, end=2),), "loss": torch.nn.functional.relu})
    {'schedule': [{'class': 'purerun.schedule.Constant', 'begin': 0, 'end': 2, 'by': 'epoch', 'param': 'lr', \
'factor': 0.5}], 'loss': 'torch.nn.functional.relu'}
    """
    match value:
        case float() if not math.isfinite(value):
            return str(value)  # JSON has no such numbers, and manifests hold recipes too
        case bool() | int() | float() | str() | None:
            return value
        case Module():
            return _table(qualified(value.target), _below(value))
        case functools.partial(args=()):
            return _table(qualified(value.func), _below(value))
        case Tensor():
            return _tensor(value)
        case Mapping():
            return {str(key): resolved(below) for key, below in value.items() if below is not None}
        case list() | tuple():
            return _array(value)
        case Set():
            return sorted(map(str, value))
        case Path() | torch.dtype() | torch.device():
            return str(value)
        case type() | types.FunctionType() | types.BuiltinFunctionType() | types.MethodType():
            return qualified(value)
    if attrs.has(type(value)):
        return _table(qualified(type(value)), _below(value) or _held(value))
    return _table(qualified(type(value)), {"length": len(value)} if isinstance(value, Sized) else {})


def text(recipe: Any) -> str:
    """Write a recipe as TOML: what `recipe.toml` of a run holds."""
    return _HEAD + tomli_w.dumps(resolved(recipe))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """List the values in which two resolved recipes differ, by path; an empty list says no more than none.

    >>> differences({"optimizer": {"lr": 0.1}, "seed": 0}, {"optimizer": {"lr": 0.2}, "seed": 0})
    [Difference(path='optimizer.lr', old=0.1, new=0.2)]
    """
    before, after = dict(_flat(old, ())), dict(_flat(new, ()))
    paths = [*before, *(path for path in after if path not in before)]
    pairs = [Difference(path, before.get(path), after.get(path)) for path in paths]
    return [pair for pair in pairs if not _alike(pair.old, pair.new)]


def _alike(old: Any, new: Any) -> bool:
    if old in (None, [], {}) and new in (None, [], {}):
        return True
    # True is no 1 here, but 10 is 10.0.
    return old == new and (type(old) is bool) == (type(new) is bool)


def flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Say a resolved recipe without its nesting: path -> value.

    >>> flat({"optimizer": {"lr": 0.1}, "schedule": [{"end": 3}]})
    {'optimizer.lr': 0.1, 'schedule.0.end': 3}
    """
    return dict(_flat(data, ()))


def qualified(target: Any) -> str:
    """Name a class or function so that it can be found: module and qualified name.

    Ours are named by their room, as they are imported.

    >>> from purerun.optim import SGD
    >>> qualified(SGD), qualified(torch.nn.Linear)
    ('purerun.optim.SGD', 'torch.nn.modules.linear.Linear')
    """
    module = str(target.__module__ or "builtins")
    if module.startswith("purerun."):
        module = ".".join(module.split(".")[:2])
    return f"{module}.{target.__qualname__}"


_HEAD = """\
# The recipe of this run with every value that it holds, defaults too: to read and to compare.
# A path here, such as optimizer.lr, is one for --set.  What is None is left out.

"""


def _table(name: str, below: Mapping[str, Any]) -> dict[str, Any]:
    return {CLASS: name} | {key: resolved(value) for key, value in below.items() if value is not None}


def _below(value: Any) -> dict[str, Any]:
    return {name: branch.value for name, branch in branches(value).items()}


def _held(value: Any) -> dict[str, Any]:
    """List the fields of a value that has an `__init__` of its own."""
    return {field.alias: getattr(value, field.name) for field in attrs.fields(type(value)) if field.init}


def _item(value: Any) -> Any:
    # TOML has no null, and the others of an array must keep their places.
    return "None" if value is None else value


def _tensor(tensor: Tensor) -> str:
    raw = read_bytes(tensor)
    edges = (raw,) if len(raw) <= 2 * _EDGE else (raw[:_EDGE], raw[-_EDGE:])
    mark = hashlib.sha256(b"".join(edges)).hexdigest()[:12]
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} {mark}"


def _array(items: Sequence[Any]) -> Any:
    told = [_item(resolved(item)) for item in items]
    if len(told) <= _LONGEST:
        return told
    # Data and no settings: only whether it is the same is of interest.
    return f"{len(told)} items {hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"


def _flat(data: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from _flat(value, (*path, key))
    elif isinstance(data, Sequence) and data and not isinstance(data, str):
        for place, value in enumerate(data):
            yield from _flat(value, (*path, str(place)))
    else:
        yield ".".join(path), data


def _short(value: Any) -> str:
    return "none" if value is None else repr(value)
