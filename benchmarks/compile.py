"""What compiling a step brings: microseconds an iteration beside hand-written loops, side by side in one run.

    python benchmarks/compile.py                # the MLP, LeNet and the transformer
    python benchmarks/compile.py --only mlp     # models whose name begins so

Contestants take turns in short rounds; ratios are medians over rounds of "this one / that one in the same round".
What must hold: on the MLP `Compile` takes at most 0.55 of the eager loop with a fused optimizer; on the others it is no
slower than `torch.compile` of the model in a hand-written loop.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from itertools import islice

import torch
from models import TASKS, Task, loss
from overhead import OPTIMIZERS, Round, drained, fresh, purerun, race, ratio
from rich.console import Console
from rich.table import Table

import purerun as pr

EAGER, COMPILED = "hand-written, fused", "hand-written, fused, torch.compile(model)"
MODELS = ("mlp 8x32", "lenet b128", "transformer 4L")


def hand_written(task: Task, optimizer: str, *, compiled: bool) -> Round:
    """The loop that everybody writes, with a fused optimizer."""
    model, batches = fresh(task)
    opt = OPTIMIZERS[optimizer][0](model.parameters(), True)
    model = torch.compile(model) if compiled else model
    source = (batch for epoch in iter(lambda: batches, None) for batch in epoch)

    def once() -> float:
        start = time.perf_counter()
        for batch in islice(source, task.iters):
            opt.zero_grad()
            loss(model, batch).backward()
            opt.step()
        return (time.perf_counter() - start) / task.iters

    return once


def ours(task: Task, optimizer: str, *wrappers: pr.Wrapper, lease: bool = True) -> Round:
    """A loop without sinks."""
    model, batches = fresh(task)
    step = pr.wrap(pr.TrainStep(model, loss, OPTIMIZERS[optimizer][1]), *wrappers)
    return drained(pr.TrainLoop(step, iters=10**9, lease=lease)(step.init(seed=0), batches), task.iters)


CONTESTANTS: dict[str, Callable[[Task, str], Round]] = {
    EAGER: lambda task, name: hand_written(task, name, compiled=False),
    COMPILED: lambda task, name: hand_written(task, name, compiled=True),
    "purerun": ours,
    'purerun, Compile("grad")': lambda task, name: ours(task, name, pr.Compile("grad")),
    'purerun, Compile("step")': lambda task, name: ours(task, name, pr.Compile("step")),
    'purerun, Compile("grad"), values': lambda task, name: ours(task, name, pr.Compile("grad"), lease=False),
    'purerun, Compile("grad"), sinks': lambda task, name: purerun(task, name, pr.Compile("grad"), lease=True),
}


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="models whose name begins so")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in (name for name in MODELS if name.startswith(options.only)):
        with redirect_stderr(io.StringIO()):
            times = race(TASKS[name], options.optimizer, CONTESTANTS, options.rounds)
        table = Table("", "us/iteration", "/ eager", "/ compiled model", title=f"{name}, {options.optimizer}")
        for each in times:
            median = f"{statistics.median(times[each]) * 1e6:.0f}"
            table.add_row(each, median, *(f"{ratio(times, each, base):.3f}" for base in (EAGER, COMPILED)))
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
