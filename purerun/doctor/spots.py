"""Spots: the places outside of a call in which Python code can remember something, found from the code itself.

Attributes of objects and classes, names of modules, what functions are closed over, and mutable defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import attrs
import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

from purerun.doctor.generators import is_global, kind_of
from purerun.doctor.lines import is_own
from purerun.doctor.looks import COLLECTIONS, PLAIN

ABSENT = type("Absent", (), {"__repr__": lambda _: "nothing"})()
"""What a spot holds that does not exist yet."""

_DEPTH = 8
_MANY = 1000  # entries of a collection that are looked into
_MOST = 50_000  # things that are looked into at all

# What is judged by its contents, where it is held.
_CONTENTS = (*PLAIN, Tensor, np.ndarray, ModuleType)

# Threads, processes and the like: what they keep is their own affair, and to put it back would bring them to a halt.
_MACHINES = ("asyncio", "concurrent", "logging", "multiprocessing", "queue", "socket", "subprocess", "threading")

# What a DataLoader was made of; the rest is about its workers.
_LOADERS = ("dataset", "sampler", "batch_sampler", "generator", "collate_fn", "worker_init_fn")

# What a module keeps for torch: parameters and buffers are in the state, the others are its own affair.
_TORCHS = ("_parameters", "_buffers", "_modules", "training", "_flat_weights", "_flat_weight_refs")


@attrs.frozen(eq=False)
class Spot:
    """One place.

    Attributes:
        name: what a person would call it.
        key: tells it from all others.
        get: reads it; ABSENT if it is not there.
        put: writes it, or takes it away.
        of_module: whether it is a plain attribute of an nn.Module.
    """

    name: str
    key: str
    get: Callable[[], Any]
    put: Callable[[Any], None]
    of_module: bool = False


def spots(roots: Iterable[Any]) -> dict[str, Spot]:
    """Find the spots that some functions and objects can reach, by key.

    Of functions and classes only the user's own are looked into.

    >>> from argparse import Namespace
    >>> [spot.name for spot in spots([Namespace(calls=0, inner=Namespace(more=1))]).values()]
    ['Namespace.calls', 'Namespace.inner', 'Namespace.more']
    """
    walk = _Walk()
    for root in roots:
        walk.visit(root, _DEPTH)
    return walk.found


class _Walk:
    """Goes from thing to thing, to each once."""

    def __init__(self) -> None:
        self.found: dict[str, Spot] = {}
        # The things themselves, so that no other is given the same identity meanwhile.
        self._seen: dict[int, Any] = {}
        self._held: set[int] = set()

    def visit(self, value: Any, depth: int) -> None:
        known = id(value) in self._seen or isinstance(value, _CONTENTS)
        if known or not depth or len(self._seen) > _MOST:
            return
        self._seen[id(value)] = value
        for inner in self._inside(value):
            self.visit(inner, depth - 1)

    def _inside(self, value: Any) -> Iterable[Any]:
        """Note the spots of one thing, and say where to go on."""
        if kind_of(value) is not None:
            if id(value) not in self._held:  # an argument, say: nothing names it
                self._add(_fixed(type(value).__qualname__, value))
            return ()
        if isinstance(value, BuiltinMethodType):
            return (value.__self__,)
        if isinstance(value, functools.partial):
            return (value.func, *value.args, *value.keywords.values())
        if isinstance(value, MethodType):
            return (value.__func__, value.__self__)
        if isinstance(value, FunctionType):
            return self._function(value) if is_own(value.__code__.co_filename) else ()
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, (Mapping, *COLLECTIONS)):
            return list(value.values() if isinstance(value, Mapping) else value)[:_MANY]
        return self._object(value)

    def _function(self, function: FunctionType) -> Iterable[Any]:
        names = _names(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            yield self._add(_cell(name, cell))
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            yield self._add(_fixed(f"a default of {function.__name__}", default))
        for name in vars(function):
            yield self._add(_entry(f"{function.__name__}.{name}", vars(function), name))
        yield from self._globals(function.__globals__, names)

    def _globals(self, found: dict[str, Any], names: set[str]) -> Iterable[Any]:
        for name in sorted(names & {*found}):
            value = found[name]
            if isinstance(value, ModuleType):
                if is_own(getattr(value, "__file__", None) or "<none>"):
                    yield from self._globals(vars(value), names)
            elif isinstance(value, FunctionType | type):
                yield value
            else:
                yield self._add(_entry(name, found, name))

    def _class(self, kind: type) -> Iterable[Any]:
        for owner in kind.__mro__:
            if not _is_own_class(owner):
                continue
            for name, value in list(vars(owner).items()):
                if isinstance(value, property | functools.cached_property | staticmethod | classmethod):
                    yield value.fget if isinstance(value, property) else getattr(value, "__func__", None)
                elif isinstance(value, FunctionType):
                    yield value
                elif not name.startswith("__") and not _is_descriptor(value):
                    yield self._add(_attribute(f"{owner.__name__}.{name}", owner, name))

    def _object(self, value: Any) -> Iterable[Any]:
        kind, names = type(value), _attributes(value)
        of_module = isinstance(value, nn.Module)
        for name in names:
            if of_module and name in _TORCHS:
                continue
            spot = _attribute(f"{kind.__name__}.{name}", value, name, of_module=of_module)
            # A configuration value of ours cannot remember; what it holds can.
            yield spot.get() if kind.__module__.startswith("purerun.") else self._add(spot)
        if of_module:
            yield from value.children()
        yield kind

    def _add(self, spot: Spot) -> Any:
        value = spot.get()
        self._held.add(id(value))
        if not is_global(value):
            self.found.setdefault(spot.key, spot)
        if isinstance(value, dict | list | tuple):
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in islice(entries, _MANY):
                if kind_of(inner) is not None:
                    self._add(_fixed(f"{spot.name}[{key!r}]", inner))
        return value


def _names(code: CodeType) -> set[str]:
    """List the names that a function's code uses, those of the functions in it included."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


def _is_own_class(kind: type) -> bool:
    functions = (each for each in vars(kind).values() if isinstance(each, FunctionType))
    return any(is_own(each.__code__.co_filename) for each in functions)


def _is_descriptor(value: Any) -> bool:
    return any("__get__" in vars(kind) for kind in type(value).__mro__)


def _attributes(value: Any) -> list[str]:
    """List the names under which an object keeps things: of its dict, and of its slots."""
    if isinstance(value, DataLoader):
        return [*_LOADERS]
    if type(value).__module__.partition(".")[0] in _MACHINES:
        return []
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    named = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    own = [] if type(value).__module__.startswith("purerun.") else [*getattr(value, "__dict__", {})]
    fields = [field.name for field in attrs.fields(type(value))] if attrs.has(type(value)) else []
    return [name for name in dict.fromkeys((*fields, *own, *named)) if not name.startswith("__")]


def _entry(name: str, holder: dict[str, Any], key: str) -> Spot:
    def put(value: Any) -> None:
        if value is ABSENT:
            holder.pop(key, None)
        else:
            holder[key] = value

    return Spot(name, f"{id(holder)} {key}", lambda: holder.get(key, ABSENT), put)


def _cell(name: str, cell: CellType) -> Spot:
    def get() -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return ABSENT

    def put(value: Any) -> None:
        if value is not ABSENT:
            cell.cell_contents = value

    return Spot(name, str(id(cell)), get, put)


def _attribute(name: str, owner: Any, key: str, *, of_module: bool = False) -> Spot:
    # Past frozen classes and __getattr__: this is an experiment, and is undone.
    get_, set_, take_ = (
        (type.__getattribute__, type.__setattr__, type.__delattr__)
        if isinstance(owner, type)
        else (object.__getattribute__, object.__setattr__, object.__delattr__)
    )

    def get() -> Any:
        try:
            return get_(owner, key)
        except AttributeError:
            return ABSENT

    def put(value: Any) -> None:
        if value is not ABSENT:
            set_(owner, key, value)
        elif get() is not ABSENT:
            take_(owner, key)

    return Spot(name, f"{id(owner)} {key}", get, put, of_module)


def _fixed(name: str, value: Any) -> Spot:
    """Make the spot of something whose contents may change, but which stays where it is."""
    return Spot(name, str(id(value)), lambda: value, lambda _: None)
