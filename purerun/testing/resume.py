"""The law of completeness: to stop, save, load and go on is to have gone on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from purerun.loop import TrainLoop
from purerun.random import Key
from purerun.state import State
from purerun.testing import snapshot
from purerun.testing.blame import blame
from purerun.testing.broken import LawBroken
from purerun.testing.snapshot import Snapshot, changed
from purerun.testing.states import rebuilt

LAW = "resume"


def check_resume(
    loop: TrainLoop,
    state: State,
    loader: Any,
    *,
    at: Literal["every"] | int | Sequence[int] = "every",
    through: Callable[[State], State] = rebuilt,
    again: Callable[[], tuple[TrainLoop, Any]] | None = None,
) -> None:
    """Check that `run(n)` equals `run(k)`, save, load, `run(n - k)`, bit for bit in every state.

    Afterwards the run is made once more with a save and a load after each iteration.

    Args:
        loop: a loop that ends.
        state: where the run begins.
        loader: what it reads.
        at: after which iterations to stop: "every" one (and before the first, and after the
            last), this many at random, or these.
        through: state -> the state that comes back; by default through plain bytes, with
            `purerun.testing.saved(directory)` through a checkpoint.
        again: makes the loop and the loader anew for each resume, as a new process would.

    Raises:
        LawBroken: naming the first iteration and leaf that differ, and whether the step, the
            data or the state is to blame.
        ValueError: the loop is over before it begins.

    >>> import torch, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, b: model(b[0]).mean(), pr.optim.SGD(lr=0.1))
    >>> loader = pr.Loader(pr.data.Tensors(torch.rand(10, 2)), batch_size=4, shuffle=True)
    >>> check_resume(pr.TrainLoop(step, epochs=2), step.init(seed=0), loader)
    """
    whole = [(each.hold(), snapshot.of_state(each)) for each in loop(state, loader)]
    if not whole:
        raise ValueError("expected a loop with at least one iteration to go, got one that is over; begin earlier")
    states, looks = [state, *(each for each, _ in whole)], [look for _, look in whole]
    make = again or (lambda: (loop, loader))
    for stop in _stops(at, len(looks)):
        expected, start = iter(looks[stop:]), through(states[stop])
        _follow(make, start, expected, f"stopped after {stop} of {len(looks)} iterations")
    if at == "every":
        _halting(make, state, looks, through)


def check_shape_constancy(loop: TrainLoop, state: State, loader: Any) -> None:
    """Check that the persistent part of the state keeps its names, shapes and dtypes from the first iteration on.

    Raises:
        LawBroken: naming the leaf.

    >>> import torch, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> check_shape_constancy(pr.TrainLoop(step, epochs=2), step.init(seed=0), [torch.ones(4, 2)])
    """
    first: Snapshot = {}
    for each in loop(state, loader):
        form = snapshot.forms(each)
        for path in changed(first or form, form):
            cause = f"it was {first.get(path, 'absent')}, and is {form.get(path, 'absent')}; make it whole in `init`"
            raise LawBroken("constancy of shapes", cause, iteration=int(each["iter"]), leaf=path)
        first = form


def _stops(at: Literal["every"] | int | Sequence[int], count: int) -> list[int]:
    if at == "every":
        return list(range(count + 1))
    if isinstance(at, int):
        chosen = Key.of(at, "resume", count).numpy().permutation(count + 1)[:at]
        return sorted(int(stop) for stop in chosen)
    return list(at)


def _follow(make: Callable[[], tuple[TrainLoop, Any]], start: State, expected: Iterator[Snapshot], how: str) -> None:
    """Run from a state that came back, and compare each iteration."""
    loop, loader = make()
    before = start
    for each in loop(start, loader):
        look = next(expected, None)
        if look is None:
            raise LawBroken(LAW, f"{how}, the run went on for longer than before", iteration=int(each["iter"]))
        _compare(look, each, before, loop, loader, how)
        before = each.hold()
    if next(expected, None) is not None:
        raise LawBroken(LAW, f"{how}, the run ended earlier than before", iteration=int(before["iter"]))


def _halting(
    make: Callable[[], tuple[TrainLoop, Any]], state: State, looks: list[Snapshot], through: Callable[[State], State]
) -> None:
    """Run with a save and a load after each iteration."""
    for expected in looks:
        loop, loader = make()
        run = loop(state, loader)
        each = next(run, None)
        if each is None:
            raise LawBroken(LAW, "stopped after each iteration, the run ended early", iteration=int(state["iter"]))
        _compare(expected, each, state, loop, loader, "stopped after each iteration")
        state = through(each)
        run.close()


def _compare(look: Snapshot, each: State, before: State, loop: TrainLoop, loader: Any, how: str) -> None:
    for path in changed(look, snapshot.of_state(each)):
        cause = f"{how}, the run gives other bits; {blame(loop.step, before, loader)}"
        raise LawBroken(LAW, cause, iteration=int(each["iter"]), leaf=path)
