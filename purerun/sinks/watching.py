"""`watch`: let sinks watch a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeAlias

from purerun import processes
from purerun.checkpoint import find, read_manifest
from purerun.sinks.desk import Desk
from purerun.sinks.sink import Sink
from purerun.sinks.watched import Watched, joined
from purerun.state import State

StreamFunction: TypeAlias = Callable[[Iterator[State]], Iterator[State]]


def watch(
    states: Iterator[State],
    *sinks: Sink | StreamFunction,
    resume: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Watched:
    """Let sinks watch a run: an iterator of the same states.

    Where several processes train one run, only the first one's sinks watch; functions of your own are called in all.
    When it ends, is left or fails, all sinks are closed, and what went wrong passes through.
    A sink that fails while it is closed after another failure is named in a note on that one.

    Args:
        states: a run, such as `train_loop(state, loader)`.
        sinks: what watches; besides sinks, any function from an iterator of states to one.
        resume: the checkpoint, or the run by its last one, that `states` goes on from: sinks
            with a memory go on as if nothing had happened.
        overwrite: begin anew where another run has left its log or its checkpoints.

    Raises:
        CheckpointError: there is no checkpoint to go on from.
        SinkError: when the first state is asked for: a sink would do harm.

    >>> import tempfile, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> states = pr.TrainLoop(step, iters=4)(step.init(seed=0), [torch.ones(4, 2)] * 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for state in pr.watch(states, pr.sinks.Checkpoint(folder, every="2 iters")):
    ...         pass
    ...     pr.checkpoint.names(folder)
    ('iter_00000002', 'iter_00000004')
    """
    plain = [sink for sink in sinks if not isinstance(sink, Sink)]
    for sink in plain:
        if not callable(sink):
            raise TypeError(f"expected a sink such as pr.sinks.Log(every=50), got {sink!r}")
        states = sink(states)
    ours = [sink for sink in sinks if isinstance(sink, Sink)] if processes.rank() == 0 else []
    desk = Desk(overwrite=overwrite)
    if resume is not None:
        desk.resumed = find(resume)
        desk.manifest = read_manifest(desk.resumed)
    return joined(states, ours, desk)
