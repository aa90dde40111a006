"""States to test with: small ones made from nothing, and copies that went through plain bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purerun.checkpoint import load, save
from purerun.identity import read_bytes
from purerun.state import REPORT, Draft, State, seal


def counted(epoch: int = 0, iter: int = 0, cursor: int = 0, seed: int = 0, **more: Any) -> State:
    """Make a small state that stands at some place of a run.

    With `cursor=0` it is the state of an epoch that has just been finished.

    Args:
        epoch: finished epochs.
        iter: finished iterations.
        cursor: samples consumed in the current epoch.
        seed: where the run's chance comes from.
        more: further entries: tensors, or mappings of names to tensors.

    >>> state = counted(epoch=2, iter=10)
    >>> int(state["epoch"]), int(state["iter"]), int(state["cursor"])
    (2, 10, 0)
    """
    trees: Draft = {name: {} for name in ("params", "buffers", "optim", "hyper", "scores", REPORT)}
    counters = {"epoch": epoch, "iter": iter, "cursor": cursor, "seed": seed}
    leaves = {name: torch.tensor(value, dtype=torch.int64) for name, value in counters.items()}
    return seal({**trees, **leaves}).replace(more)


def rebuilt(state: State) -> State:
    """Make the state that a checkpoint gives back: new tensors from bytes, names sorted, no report.

    >>> from purerun.identity import digest
    >>> state = counted(iter=3, params={"w": torch.ones(2)})
    >>> digest(rebuilt(state)) == digest(state), rebuilt(state).names()[0]
    (True, 'buffers')
    """
    draft = _rebuilt(state)
    draft[REPORT] = {}
    return seal(draft)


def saved(directory: str | os.PathLike[str]) -> Callable[[State], State]:
    """Make the function that sends a state through a checkpoint in a directory.

    >>> import tempfile
    >>> from purerun.identity import digest
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest(saved(folder)(counted(iter=3))) == digest(counted(iter=3))
    True
    """

    def through(state: State) -> State:
        save(state, directory)
        return load(directory)

    return through


def _rebuilt(tree: Any) -> Draft:
    items = sorted(tree.items())
    return {name: _copied(value) if isinstance(value, Tensor) else _rebuilt(value) for name, value in items}


def _copied(leaf: Tensor) -> Tensor:
    raw = bytearray(read_bytes(leaf))
    if not raw:
        return torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)
    # In the layout that it had, as a checkpoint keeps it: other strides are other kernels.
    return torch.empty_like(leaf).copy_(torch.frombuffer(raw, dtype=leaf.dtype).reshape(leaf.shape))
