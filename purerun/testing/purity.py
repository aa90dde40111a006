"""The law of purity: a step changes nothing, and depends on nothing but its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from purerun.random import Key, keyed_everywhere
from purerun.state import State
from purerun.step import Step
from purerun.testing import snapshot
from purerun.testing.broken import LawBroken
from purerun.testing.snapshot import Snapshot, changed

LAW = "purity"


def check_purity(step: Callable[[State, Any], State], state: State, batch: Any, *, steps: int = 3) -> None:
    """Check that a step is a function of its arguments, and nothing else.

    It changes neither the state, nor the batch, nor a module, nor a global (generators, modes).
    Called again it gives the same bits: also with other global chance, without gradients, with
    other weights in the module itself, and by its two halves.  A state that is kept stays as it is.

    Args:
        step: a step, or any function from state and batch to state.
        state: where to step from.
        batch: what to step on.
        steps: how many steps to take.

    Raises:
        LawBroken: naming what was changed, or the leaf that came out different and why.

    >>> import purerun as pr
    >>> step = pr.TrainStep(nn.Linear(2, 1), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1))
    >>> check_purity(step, step.init(seed=0), torch.ones(4, 2))
    >>> def sloppy(state, batch):
    ...     return step(state, batch.mul_(2))
    >>> check_purity(sloppy, step.init(seed=0), torch.ones(4, 2))
    Traceback (most recent call last):
    ...
    purerun.testing.broken.LawBroken: purity is broken at iteration 0, in `batch`: the step changed it; the loss or ...
    """
    kept: list[tuple[State, Snapshot]] = []
    for _ in range(steps):
        kept.append((state, snapshot.of_state(state)))
        after = _stepped(step, state, batch)
        _repeat(step, state, batch, after)
        _halve(step, state, batch, after)
        state = after
    for older, looks in kept:
        for path in changed(looks, snapshot.of_state(older)):
            cause = "a state that was kept has changed under a later step"
            raise LawBroken(LAW, cause, iteration=int(older["iter"]), leaf=path)


def _stepped(step: Callable[[State, Any], State], state: State, batch: Any) -> State:
    """Step once, and see that nothing has changed."""
    before = _look(step, state, batch)
    after = step(state, batch)
    for path in changed(before, _look(step, state, batch)):
        cause = f"the step changed it; {_remedy(path)}"
        raise LawBroken(LAW, cause, iteration=int(state["iter"]), leaf=path)
    return after


def _look(step: Any, state: State, batch: Any) -> Snapshot:
    looks = {f"state/{path}": look for path, look in snapshot.of_state(state).items()}
    looks |= snapshot.of_batch(batch) | snapshot.of_process()
    for name, module in snapshot.modules(step).items():
        looks |= snapshot.of_module(module, name)
    return looks


def _remedy(path: str) -> str:
    if path.startswith("state/"):
        return "write into clones only"
    if path.startswith("batch"):
        return "the loss or the model writes into the batch: clone what it changes"
    if "random" in path or "generator" in path:
        return "draw inside of the model or the loss, where the global generators are keyed"
    if path.startswith("torch."):
        return "put modes back with a `with` block"
    return "keep what a module remembers in a buffer of the model, and run other modules in evaluation mode"


def _repeat(step: Callable[[State, Any], State], state: State, batch: Any, first: State) -> None:
    """Step again under other circumstances, which must not matter."""
    expected = snapshot.of_state(first)
    circumstances: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "when it was called again": nullcontext,
        "when the global generators stood elsewhere": lambda: keyed_everywhere(Key.of(17, "elsewhere")),
        "under torch.no_grad()": torch.no_grad,
        "when the module itself had other weights and was in evaluation mode": lambda: _others(snapshot.models(step)),
    }
    for when, circumstance in circumstances.items():
        with circumstance():
            again = snapshot.of_state(step(state, batch))
        for path in changed(expected, again):
            raise LawBroken(LAW, f"the step gave other bits {when}", iteration=int(state["iter"]), leaf=path)


def _halve(step: Callable[[State, Any], State], state: State, batch: Any, whole: State) -> None:
    """Step by the two halves, which must make the whole."""
    if not isinstance(step, Step):
        return
    halves = step.update(state, step.grad(state, batch))
    for path in changed(snapshot.of_state(whole), snapshot.of_state(halves)):
        cause = "update(state, grad(state, batch)) gave other bits than step(state, batch)"
        raise LawBroken(LAW, cause, iteration=int(state["iter"]), leaf=path)


@contextmanager
def _others(models: list[nn.Module]) -> Iterator[None]:
    """Give modules other weights and flags for a while.

    In place, because somebody may have kept a view of them.
    """
    flags = [(inner, inner.training) for model in models for inner in model.modules()]
    tensors = [tensor.detach() for model in models for tensor in (*model.parameters(), *model.buffers())]
    kept = [(tensor, tensor.clone()) for tensor in tensors if not _overlaps(tensor)]
    try:
        for model in models:
            model.eval()
        for tensor, _ in kept:
            tensor.copy_(torch.ones_like(tensor))
        yield
    finally:
        for tensor, value in kept:
            tensor.copy_(value)
        for inner, flag in flags:
            inner.training = flag


def _overlaps(tensor: Tensor) -> bool:
    """Say whether elements share memory, as those of an expanded tensor do."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
