"""What data parallel costs beside DistributedDataParallel in a hand-written loop, with processes of one thread each.

    python benchmarks/parallel.py                 # two processes, all models
    python benchmarks/parallel.py --processes 4   # where the fixed tree and the all-reduce part
    python benchmarks/parallel.py --rounds 60     # more rounds, for a noisy machine

Every contestant trains the same model on the same global batches with the same optimizer.  They take turns in short
rounds that begin together, and the ratios are medians over rounds of "this one / DistributedDataParallel in the same
round".  Below each table: the price of the fixed tree, and that of twice as many shards as processes.  Between two
processes the tree costs nothing: of two numbers there is only one sum.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import torch
import torch.distributed as dist
from models import TASKS, Task, Transformer, loss
from rich.console import Console
from rich.table import Table
from torch.nn.parallel import DistributedDataParallel

import purerun as pr

BATCHES = 10

MODELS = {
    "mlp 8x32": TASKS["mlp 8x32"],
    "lenet b128": TASKS["lenet b128"],
    "transformer 3M": Task(
        lambda: Transformer(width=256), lambda: (torch.randint(256, (8, 32)), torch.randint(256, (8, 32))), 2
    ),
}
OPTIMIZERS = {
    "sgd": (
        lambda params, fused: torch.optim.SGD(params, lr=1e-3, momentum=0.9, fused=fused),
        pr.optim.SGD(lr=1e-3, momentum=0.9),
    ),
    "adamw": (
        lambda params, fused: torch.optim.AdamW(params, lr=1e-4, fused=fused),
        pr.optim.AdamW(lr=1e-4, weight_decay=0.01),
    ),
}

Round = Callable[[], float]
"""One timed round: seconds an iteration."""


def fresh(task: Task) -> tuple[torch.nn.Module, list[Any]]:
    """Make the same model and global batches for every contestant and process."""
    torch.manual_seed(0)
    return task.model(), [task.batch() for _ in range(BATCHES)]


def ddp(task: Task, optimizer: str, *, fused: bool) -> Round:
    """The loop that everybody writes, each process on its half of the batch."""
    model, batches = fresh(task)
    model = DistributedDataParallel(model)
    opt = OPTIMIZERS[optimizer][0](model.parameters(), fused)
    rank = dist.get_rank()
    source = cycle([tuple(tensor.chunk(dist.get_world_size())[rank] for tensor in batch) for batch in batches])

    def once() -> float:
        start = time.perf_counter()
        for batch in islice(source, task.iters):
            opt.zero_grad()
            value = loss(model, batch)
            value.backward()
            opt.step()
        return (time.perf_counter() - start) / task.iters

    return once


def purerun(task: Task, optimizer: str, *, each: int = 1, reduce: str = "tree") -> Round:
    """The step as a loop calls it, each process on its shards."""
    model, batches = fresh(task)
    wrapper = pr.DataParallel(each * dist.get_world_size(), reduce=reduce)
    step = pr.wrap(pr.TrainStep(model, loss, OPTIMIZERS[optimizer][1]), wrapper)
    source = cycle([pr.data.Shards.of(batch, step.share) for batch in batches])
    states, place = [step.init(seed=0)], pr.data.Position(0, 1)

    def once() -> float:
        start = time.perf_counter()
        for shards in islice(source, task.iters):
            states.append(step.advance(states.pop(), shards, place, lease=True))
        return (time.perf_counter() - start) / task.iters

    return once


CONTESTANTS: dict[str, Callable[[Task, str], Round]] = {
    "DDP": lambda task, name: ddp(task, name, fused=False),
    "DDP, fused": lambda task, name: ddp(task, name, fused=True),
    "tree": purerun,
    "all": lambda task, name: purerun(task, name, reduce="all"),
    "tree, 2 shards each": lambda task, name: purerun(task, name, each=2),
}


def race(task: Task, optimizer: str, rounds: int) -> dict[str, list[float]]:
    """Let the contestants take turns."""
    ready = {name: make(task, optimizer) for name, make in CONTESTANTS.items()}
    for once in ready.values():
        once()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds):
        names = list(ready)[turn % len(ready) :] + list(ready)[: turn % len(ready)]
        for name in names:
            dist.barrier()
            times[name].append(ready[name]())
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Take the median over rounds of one contestant over another."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def show(title: str, times: dict[str, list[float]]) -> None:
    """Print one table."""
    table = Table("", "us/iteration", "/ DDP", "/ DDP, fused", title=title)
    for name, taken in times.items():
        ratios = [f"{ratio(times, name, base):.3f}" for base in ("DDP", "DDP, fused")]
        table.add_row(name, f"{statistics.median(taken) * 1e6:.0f}", *ratios)
    Console(width=100).print(table)
    tree, finer = ratio(times, "tree", "all"), ratio(times, "tree, 2 shards each", "tree")
    Console(width=100).print(f"the fixed tree costs {tree:.3f}x of the all-reduce; 2 shards each {finer:.3f}x of 1\n")


def compete(models: list[str], rounds: int) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    with pr.processes.started() as rank:
        for model in models:
            for optimizer in OPTIMIZERS:
                times = race(MODELS[model], optimizer, rounds)
                if rank == 0:
                    show(f"{model}, {optimizer}, {pr.processes.count()} processes", times)


def main() -> None:
    """Start the processes, as torchrun does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    if "RANK" in os.environ:
        compete(asked.models, asked.rounds)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(asked.processes),
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(asked.processes)
    ]
    sys.exit(max(process.wait() for process in running))


if __name__ == "__main__":
    main()
