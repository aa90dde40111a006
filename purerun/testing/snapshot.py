"""Snapshots: what states, batches, modules and the process look like, as texts that can be compared."""

from __future__ import annotations

import functools
import hashlib
import inspect
import random
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from purerun.identity import describe
from purerun.state import State, leaves
from purerun.train import TrainStep

Snapshot: TypeAlias = dict[str, str]
"""Path -> how it looks; equal texts mean equal bits."""


def of_state(state: State) -> Snapshot:
    """Look at every leaf of a state, the fingerprint and the report of the last step included.

    >>> from purerun.testing import counted
    >>> sorted(of_state(counted(iter=2)))
    ['cursor', 'epoch', 'iter', 'seed']
    """
    return {"/".join(path): describe(leaf) for path, leaf in leaves(state, report=True)}


def forms(state: State) -> Snapshot:
    """Look at the dtype, shape and device of every saved leaf."""
    return {"/".join(path): f"{leaf.dtype} {list(leaf.shape)} {leaf.device}" for path, leaf in leaves(state)}


def of_batch(batch: Any, path: str = "batch", depth: int = 8) -> Snapshot:
    """Look at every tensor, array and number of a batch; at an object of one's own by what it holds.

    >>> [path for path in of_batch({"image": torch.zeros(2), "ids": [1, "a"]})]
    ['batch', 'batch/image', 'batch/ids', 'batch/ids/0', 'batch/ids/1']
    """
    if isinstance(batch, Tensor):
        return {path: describe(batch)}
    if isinstance(batch, np.ndarray):
        if batch.dtype.hasobject:  # whose bytes are addresses
            return of_batch(batch.tolist(), path, depth)
        raw = np.ascontiguousarray(batch).tobytes()
        return {path: f"{batch.dtype} {batch.shape} {hashlib.sha256(raw).hexdigest()}"}
    if isinstance(batch, bool | int | float | str | bytes | None):
        return {path: repr(batch)}
    if isinstance(batch, Mapping | list | tuple):
        items = dict(batch.items()) if isinstance(batch, Mapping) else dict(enumerate(batch))
        looks = {path: f"{type(batch).__name__} of {list(items)}"}
    else:
        # Not by its identity: what is read again comes in another object.
        items = dict(getattr(batch, "__dict__", {})) if depth > 0 else {}
        looks = {path: f"object {type(batch).__qualname__}"}
    for name, value in items.items():
        looks |= of_batch(value, f"{path}/{name}", depth - 1)
    return looks


def of_module(module: nn.Module, path: str) -> Snapshot:
    """Look at the weights, buffers, gradients, flags and plain attributes of a module."""
    looks: Snapshot = {}
    for where, inner in module.named_modules(prefix=path):
        looks[f"{where} training"] = str(inner.training)
        for name, tensor in {**inner._parameters, **inner._buffers}.items():
            if tensor is not None:
                grad = "" if tensor.grad is None else describe(tensor.grad)
                looks[f"{where}.{name}"] = f"{id(tensor)} {describe(tensor)} {tensor.requires_grad} {grad}"
        for name, value in inner.__dict__.items():
            if name not in ("training", "_parameters", "_buffers", "_modules", *_CACHES):
                looks[f"{where}.{name}"] = _inside(value)
    return looks


def of_process() -> Snapshot:
    """Look at the global generators and modes that code may change behind one's back."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch's global generator": describe(torch.get_rng_state()),
        "torch's CUDA generators": " ".join(map(describe, cuda)),
        "numpy's global generator": _text(np.random.get_state(legacy=False)),  # noqa: NPY002
        "Python's random": _text(random.getstate()),
        "torch.is_grad_enabled()": str(torch.is_grad_enabled()),
        "torch.is_inference_mode_enabled()": str(torch.is_inference_mode_enabled()),
        "torch.get_default_dtype()": str(torch.get_default_dtype()),
        "torch.get_default_device()": str(torch.get_default_device()),
        "torch.are_deterministic_algorithms_enabled()": str(torch.are_deterministic_algorithms_enabled()),
        "torch.is_anomaly_enabled()": str(torch.is_anomaly_enabled()),
        "torch.is_autocast_enabled()": str(torch.is_autocast_enabled("cpu")),
        "torch.get_num_threads()": str(torch.get_num_threads()),
    }


def modules(step: Any) -> dict[str, nn.Module]:
    """Find the modules that a step uses: its model, and what its functions are closed over.

    >>> net = nn.Linear(2, 1)
    >>> def step(state, batch):
    ...     return net
    >>> list(modules(step))
    ['net']
    """
    found: dict[str, nn.Module] = {}
    for name, value in _walk(step, "", set()):
        if isinstance(value, nn.Module) and all(value is not module for module in found.values()):
            found[name] = value
    return found


def models(step: Any) -> list[nn.Module]:
    """Find the modules that are run on the state's tensors, and so have no say with their own."""
    return [value.model for _, value in _walk(step, "", set()) if isinstance(value, TrainStep)]


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """List the paths that look different.

    >>> changed({"a": "1", "b": "2"}, {"a": "1", "c": "2"})
    ['b', 'c']
    """
    return [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]


# Lists that torch's recurrent layers make anew from their weights.
_CACHES = ("_flat_weights", "_flat_weight_refs")


def _is_value(value: Any) -> bool:
    return isinstance(value, nn.Module) or attrs.has(type(value))


def _text(value: Any) -> str:
    with np.printoptions(threshold=10_000):
        return hashlib.sha256(repr(value).encode()).hexdigest()


def _inside(value: Any, depth: int = 3) -> str:
    """Look into a plain attribute: tensors and arrays by their bytes, objects by what they hold."""
    if isinstance(value, Tensor):
        return describe(value)
    if isinstance(value, np.ndarray):
        return str(of_batch(value))
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return repr(value)
    if depth and isinstance(value, Mapping):
        return str([(str(name), _inside(inner, depth - 1)) for name, inner in value.items()])
    if depth and isinstance(value, list | tuple | set | frozenset | deque):
        return str([_inside(inner, depth - 1) for inner in value])
    if depth and not callable(value) and not isinstance(value, nn.Module):
        return f"{id(value)} {_inside(getattr(value, '__dict__', None), depth - 1)}"
    return str(id(value))


def _walk(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Walk over a configuration value and what is inside of it, each once."""
    if id(value) in seen or isinstance(value, Tensor | str | bytes | int | float | None):
        return
    seen.add(id(value))
    yield path, value
    for name, inner in _parts(value):
        yield from _walk(inner, f"{path}.{name}".lstrip("."), seen)


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, nn.Module | type):
        return []
    if attrs.has(type(value)):
        return [(field.name, getattr(value, field.name)) for field in attrs.fields(type(value))]
    if isinstance(value, Mapping):
        return [(str(name), inner) for name, inner in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [(str(place), inner) for place, inner in enumerate(value)]
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if inspect.ismethod(value):
        return [(value.__name__, value.__self__)]
    if inspect.isfunction(value):
        used = inspect.getclosurevars(value)
        # Of the globals only values: a function of another file has globals of its own, without end.
        values = [(name, inner) for name, inner in used.globals.items() if _is_value(inner)]
        return [*used.nonlocals.items(), *values]
    return []
