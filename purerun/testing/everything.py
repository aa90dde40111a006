"""All laws at once, on one's own run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from purerun.data import Loader, as_loader
from purerun.hooks import Hook
from purerun.loop import TrainLoop
from purerun.state import State
from purerun.testing.edges import check_hooks_write_only_declared, check_sinks_change_nothing
from purerun.testing.fresh import check_fresh_tensors
from purerun.testing.modes import check_values_equal_lease, check_workers
from purerun.testing.purity import check_purity
from purerun.testing.resume import check_resume, check_shape_constancy
from purerun.testing.states import rebuilt


def check_everything(
    loop: TrainLoop,
    state: State,
    loader: Any,
    *,
    through: Callable[[State], State] = rebuilt,
    again: Callable[[], tuple[TrainLoop, Any]] | None = None,
    sinks: Callable[[Iterator[State]], Iterator[State]] | None = None,
    workers: tuple[int, ...] = (0,),
) -> None:
    """Check every law on a run: use a short one, because each resume runs it again.

    Args:
        loop: a loop that ends soon.
        state: where the run begins.
        loader: what it reads.
        through: as in `check_resume`.
        again: as in `check_resume`.
        sinks: as in `check_sinks_change_nothing`.
        workers: as in `check_workers`, for a `Loader`.

    Raises:
        LawBroken: the first law that does not hold.

    >>> import torch, purerun as pr
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(), torch.nn.Linear(3, 1))
    >>> step = pr.TrainStep(net, lambda model, b: model(b[0]).square().mean(), pr.optim.SGD(lr=0.1, momentum=0.9))
    >>> loader = pr.Loader(pr.data.Tensors(torch.rand(10, 2)), batch_size=4, shuffle=True)
    >>> check_everything(pr.TrainLoop(step, epochs=2), step.init(seed=0), loader)
    """
    batch, _ = next(iter(as_loader(loader).read(int(state["seed"]), 0, 0)))
    check_purity(loop.step, state, batch)
    check_fresh_tensors(loop.step, state, batch)
    check_shape_constancy(loop, state, loader)
    check_values_equal_lease(loop, state, loader)
    check_resume(loop, state, loader, through=through, again=again)
    after = _first(loop, state, loader)
    for hook in loop.hooks:
        if isinstance(hook, Hook):
            check_hooks_write_only_declared(hook, after)
    if sinks is not None:
        check_sinks_change_nothing(loop, state, loader, sinks)
    if isinstance(loader, Loader):
        check_workers(loader, workers=workers)


def _first(loop: TrainLoop, state: State, loader: Any) -> State:
    run = loop(state, loader)
    first = next(iter(run)).hold()
    run.close()
    return first
