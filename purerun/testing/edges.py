"""The law of edges: hooks write what they declare, and sinks write nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs

from purerun.hooks import Hook
from purerun.loop import TrainLoop
from purerun.state import State, missing
from purerun.testing import snapshot
from purerun.testing.broken import LawBroken
from purerun.testing.snapshot import changed

HOOKS, SINKS = "hooks write only what they declare", "sinks change nothing"


def check_hooks_write_only_declared(hook: Hook, state: State) -> None:
    """Check that a hook is a function of the state that changes only the entries it declares.

    Args:
        hook: the hook; it is called whether or not it is due.
        state: a state at which it may be called; it is given the hook's slots first.

    Raises:
        LawBroken: naming the leaf.

    >>> from purerun.hooks import ReduceOnPlateau
    >>> from purerun.testing import counted
    >>> import torch
    >>> state = counted(epoch=1, hyper={"lr": torch.tensor(0.1)}, scores={"loss": torch.tensor(1.0)})
    >>> check_hooks_write_only_declared(ReduceOnPlateau("loss"), state)
    """
    slots = hook.slots(state)
    _declared(hook, list(slots), "makes the slot")
    state = state.replace(missing(slots, state))
    for what, act in (("writes into", hook), ("writes, at the start of a run, into", hook.start)):
        before, process = snapshot.of_state(state), snapshot.of_process()
        after = snapshot.of_state(act(state))
        for path in changed(before, snapshot.of_state(state)):
            raise LawBroken(HOOKS, f"{type(hook).__name__} wrote into the state that it was given", leaf=path)
        _declared(hook, changed(before, after), what)
        for path in changed(process, snapshot.of_process()):
            raise LawBroken(HOOKS, f"{type(hook).__name__} changed it", leaf=path)
        for path in changed(after, snapshot.of_state(act(state))):
            raise LawBroken(HOOKS, f"{type(hook).__name__} gave other bits when it was called again", leaf=path)


def check_sinks_change_nothing(
    loop: TrainLoop, state: State, loader: Any, sinks: Callable[[Iterator[State]], Iterator[State]]
) -> None:
    """Check that a run has the same bits whether sinks watch it or not, as values and as leases.

    Args:
        loop: a loop that ends.
        state: where the run begins.
        loader: what it reads.
        sinks: what watches: `lambda states: pr.watch(states, ...)`.

    Raises:
        LawBroken: naming the iteration and the leaf.

    >>> import torch, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> def counting(states):
    ...     for place, state in enumerate(states):
    ...         yield state
    >>> check_sinks_change_nothing(pr.TrainLoop(step, epochs=2), step.init(seed=0), [torch.ones(4, 2)], counting)
    """
    alone = [snapshot.of_state(each) for each in loop(state, loader)]
    for lease in (False, True):
        watched = sinks(attrs.evolve(loop, lease=lease)(state, loader))
        seen = [(int(each["iter"]), snapshot.of_state(each)) for each in watched]
        if len(seen) != len(alone):
            raise LawBroken(SINKS, f"the run has {len(alone)} states alone, and {len(seen)} under sinks")
        for (iteration, look), expected in zip(seen, alone, strict=True):
            for path in changed(expected, look):
                raise LawBroken(SINKS, f"under sinks it has other bits (lease={lease})", iteration=iteration, leaf=path)


def _declared(hook: Hook, paths: list[str], what: str) -> None:
    for path in paths:
        if path.split("/")[0] not in hook.writes:
            raise LawBroken(HOOKS, f"{type(hook).__name__} {what} it, but declares {list(hook.writes)}", leaf=path)
