"""The law of values: no tensor belongs to two states, and writing into one harms no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purerun.state import State, leaves
from purerun.testing import snapshot
from purerun.testing.broken import LawBroken
from purerun.testing.snapshot import Snapshot, changed

LAW = "separateness of states"


def check_fresh_tensors(step: Callable[[State, Any], State], state: State, batch: Any) -> None:
    """Check that the state a step makes shares nothing that can be written through.

    No tensor object occurs twice, in one state or in two.  Then everything in the new state is
    overwritten, and everything in a copy of the old one; each time the other must stay whole.

    Args:
        step: a step, or any function from state and batch to state.
        state: where to step from; it stays as it is.
        batch: what to step on.

    Raises:
        LawBroken: naming the leaf.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> check_fresh_tensors(step, step.init(seed=0), torch.ones(4, 2))
    >>> check_fresh_tensors(lambda state, batch: state, step.init(seed=0), torch.ones(4, 2))
    Traceback (most recent call last):
    ...
    purerun.testing.broken.LawBroken: separateness of states is broken at iteration 0, in `buffers`: the step ...
    """
    old = state.hold()
    new = step(old, batch)
    _no_shared_objects(old, new)
    _unharmed(old, snapshot.of_state(old), by=new, what="the state before it")
    new = step(old, batch)
    _unharmed(new, snapshot.of_state(new), by=old, what="the state after it")


def _no_shared_objects(old: State, new: State) -> None:
    seen: dict[int, str] = {}
    for which, state in (("the state before it", old), ("the same state", new)):
        for path, thing in _things(state):
            if which == "the state before it":
                seen[id(thing)] = f"{which} (`{path}`)"
                continue
            if id(thing) in seen:
                cause = f"the step handed on an object of {seen[id(thing)]}; hand on `purerun.state.lazy_clone(tensor)`"
                raise LawBroken(LAW, cause, iteration=int(old["iter"]), leaf=path)
            seen[id(thing)] = f"{which} (`{path}`)"


def _things(state: State, path: str = "") -> list[tuple[str, Any]]:
    """List the tensors and the containers of a state."""
    found: list[tuple[str, Any]] = []
    for name, value in sorted(state.items()):
        where = f"{path}/{name}".lstrip("/")
        found.append((where, value))
        if isinstance(value, State):
            found += _things(value, where)
    return found


def _unharmed(state: State, looks: Snapshot, *, by: State, what: str) -> None:
    iteration = int(state["iter"])
    for path, leaf in leaves(by, report=True):
        _spoil(leaf)
        for harmed in changed(looks, snapshot.of_state(state)):
            cause = f"writing into `{'/'.join(path)}` of one state changed {what}; give each state a lazy clone"
            raise LawBroken(LAW, cause, iteration=iteration, leaf=harmed)


def _spoil(leaf: Tensor) -> None:
    with torch.no_grad():
        leaf.logical_not_() if leaf.dtype == torch.bool else leaf.mul_(0).add_(77)
