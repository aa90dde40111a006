"""The law of sameness: leases, workers and prefetching change how a run is made, and never its bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import attrs
from torch import Tensor

from purerun.data import Loader, Position
from purerun.loop import TrainLoop
from purerun.state import StaleState, State
from purerun.testing import snapshot
from purerun.testing.broken import LawBroken
from purerun.testing.snapshot import Snapshot, changed

LEASE, WORKERS = "values equal lease", "workers change nothing"


def check_values_equal_lease(loop: TrainLoop, state: State, loader: Any) -> None:
    """Check that a loop gives the same bits as values, as leases, and as leases that nobody looks at.

    Every value stays whole to the end, so does a held lease and a tensor taken out of one; a lease
    that is over refuses to be read.

    Raises:
        LawBroken: naming the iteration and the leaf.

    >>> import torch, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> check_values_equal_lease(pr.TrainLoop(step, epochs=2), step.init(seed=0), [torch.ones(4, 2)])
    """
    start = snapshot.of_state(state)
    values = list(attrs.evolve(loop, lease=False)(state, loader))
    looks = [snapshot.of_state(each) for each in values]
    held, tensors = _leased(attrs.evolve(loop, lease=True), state, loader, looks)
    unseen = [each.hold() for each in _last(attrs.evolve(loop, lease=True), state, loader)]
    for given, expected, what in (
        ([state], [start], "the loop changed the state that it was given"),
        (values, looks, "a value has changed under a later iteration"),
        (held, looks, "a held lease has changed under a later iteration"),
        (unseen, looks[-1:], "a leased run that nobody looked at gave other bits"),
    ):
        _same(given, expected, what)
    for (iteration, path, tensor), look in tensors:
        if snapshot.of_batch(tensor)["batch"] != look:
            raise LawBroken(LEASE, "a tensor taken out of a lease has changed", iteration=iteration, leaf=path)


def check_workers(
    loader: Loader, *, workers: Sequence[int] = (0, 2), seed: int = 0, epochs: int = 2, batches: int = 50
) -> None:
    """Check that a loader gives the same batches with any number of workers, from any place.

    Args:
        loader: the loader; its own `workers` are replaced.
        workers: numbers of worker processes to compare.
        seed: the seed of the run.
        epochs: how many epochs to read, the later ones from the middle too.
        batches: how many batches of an epoch to read at most.

    Raises:
        LawBroken: naming the place and the entry of the batch.

    >>> import torch, purerun as pr
    >>> check_workers(pr.Loader(pr.data.Tensors(torch.rand(10, 2)), batch_size=4, shuffle=True), workers=(0, 0))
    """
    reference: dict[tuple[int, int], list[Snapshot]] = {}
    for count in workers:
        changed_loader = attrs.evolve(loader, workers=count)
        with changed_loader.open(seed) as session:
            for epoch in range(epochs):
                for cursor in _places(changed_loader, seed, epoch):
                    begin = epoch, cursor
                    looks = [_seen(*given) for given in islice(session.read(*begin), batches)]
                    _agree(reference.setdefault(begin, looks), looks, begin, count, workers[0])


def _leased(
    loop: TrainLoop, state: State, loader: Any, looks: list[Snapshot]
) -> tuple[list[State], list[tuple[tuple[int, str, Tensor], str]]]:
    """Run with leases: look at each, hold each, and try to use each too late."""
    held: list[State] = []
    tensors: list[tuple[tuple[int, str, Tensor], str]] = []
    late: State | None = None
    for each, look in zip(loop(state, loader), looks, strict=True):
        iteration = int(each["iter"])
        _same([each], [look], "a lease has other bits than the value")
        if late is not None:
            _refused(late, iteration - 1)
        for name, tensor in list(each["params"].items())[:2]:
            tensors.append(((iteration, f"params/{name}", tensor), look[f"params/{name}"]))
        held.append(each.hold())
        late = each
    return held, tensors


def _refused(late: State, iteration: int) -> None:
    try:
        late["iter"]
    except StaleState:
        return
    raise LawBroken(LEASE, "a lease can be read after its loop has moved on", iteration=iteration)


def _last(loop: TrainLoop, state: State, loader: Any) -> list[State]:
    """Run to the end without looking at anything on the way."""
    last: list[State] = []
    for each in loop(state, loader):
        last = [each]
    return last


def _same(given: list[State], expected: list[Snapshot], what: str) -> None:
    for state, look in zip(given, expected, strict=True):
        for path in changed(look, snapshot.of_state(state)):
            raise LawBroken(LEASE, what, iteration=int(state["iter"]), leaf=path)


def _seen(batch: Any, place: Position) -> Snapshot:
    return snapshot.of_batch(batch) | {"position": str(place[:2])}


def _places(loader: Loader, seed: int, epoch: int) -> list[int]:
    """List the start of an epoch, and the end of its first batch if the epoch goes on there."""
    first = loader.after(seed, epoch, 0)
    return [0, first.cursor] if epoch and first.epoch == epoch else [0]


def _agree(expected: list[Snapshot], given: list[Snapshot], begin: tuple[int, int], count: int, first: int) -> None:
    where = f"reading epoch {begin[0]} from sample {begin[1]}, {count} workers give"
    if len(expected) != len(given):
        raise LawBroken(WORKERS, f"{where} {len(given)} batches, and {first} gave {len(expected)}")
    for number, (a, b) in enumerate(zip(expected, given, strict=True)):
        for path in changed(a, b):
            raise LawBroken(WORKERS, f"{where} another batch {number} than {first}; is its chance keyed?", leaf=path)
