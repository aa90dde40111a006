"""What a runner costs beside a hand-written loop: milliseconds an iteration, side by side in one run.

    python benchmarks/overhead.py                      # all models, hand-written loops and purerun
    python benchmarks/overhead.py --peers              # and the peers that are installed
    python benchmarks/overhead.py --wrappers           # each wrapper beside the same feature written by hand
    python benchmarks/overhead.py --memory             # peak memory on the largest model, a process each
    python benchmarks/overhead.py --long 100000        # is time and memory flat over many steps?

Every contestant trains the same model on the same batches, on one thread.  They take turns
in short rounds, and the ratios are medians over rounds of "this one / the hand-written loop in
the same round", so that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from models import TASKS, Task, loss
from rich.console import Console
from rich.table import Table

import purerun as pr

Round = Callable[[], float]
"""One timed round: seconds an iteration."""

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
BATCHES = 10
LOG_EVERY = 50


def fresh(task: Task) -> tuple[torch.nn.Module, list[Any]]:
    """Make the same model and batches for every contestant."""
    torch.manual_seed(0)
    return task.model(), [task.batch() for _ in range(BATCHES)]


def hand_written(task: Task, optimizer: str, *, fused: bool) -> Round:
    """The loop that everybody writes: no logging, no timing, nothing."""
    model, batches = fresh(task)
    opt = OPTIMIZERS[optimizer][0](model.parameters(), fused)
    stream = iter(lambda: batches, None)
    source = (batch for epoch in stream for batch in epoch)

    def once() -> float:
        start = time.perf_counter()
        for batch in islice(source, task.iters):
            opt.zero_grad()
            value = loss(model, batch)
            value.backward()
            opt.step()
        return (time.perf_counter() - start) / task.iters

    return once


def purerun(task: Task, optimizer: str, *wrappers: pr.Wrapper, lease: bool) -> Round:
    """The full loop, with logging, timing and progress on."""
    model, batches = fresh(task)
    step = pr.wrap(pr.TrainStep(model, loss, OPTIMIZERS[optimizer][1]), *wrappers)
    loop = pr.TrainLoop(step, iters=10**9, lease=lease)
    log = Path(tempfile.mkdtemp()) / "log.jsonl"
    sinks = (pr.sinks.Log(every=LOG_EVERY, path=log, console=False), pr.sinks.Progress())
    states = pr.watch(loop(step.init(seed=0), batches), *sinks)
    return drained(states, task.iters)


def purerun_bare(task: Task, optimizer: str) -> Round:
    """The loop without sinks, as a `for` over values."""
    model, batches = fresh(task)
    step = pr.TrainStep(model, loss, OPTIMIZERS[optimizer][1])
    return drained(pr.TrainLoop(step, iters=10**9)(step.init(seed=0), batches), task.iters)


def drained(states: Iterator[pr.State], iters: int) -> Round:
    """Time a loop from outside, holding the last state as a `for` variable does."""
    held = [next(states)]

    def once() -> float:
        start = time.perf_counter()
        for state in islice(states, iters):
            held[0] = state
        return (time.perf_counter() - start) / iters

    return once


OURS: dict[str, Callable[[Task, str], Round]] = {
    "hand-written": lambda task, name: hand_written(task, name, fused=False),
    "hand-written, fused": lambda task, name: hand_written(task, name, fused=True),
    "purerun, lease": lambda task, name: purerun(task, name, lease=True),
    "purerun, values": lambda task, name: purerun(task, name, lease=False),
    "purerun, values, no sinks": purerun_bare,
}


def race(
    task: Task, optimizer: str, contestants: dict[str, Callable[[Task, str], Round]], rounds: int
) -> dict[str, list[float]]:
    """Let the contestants take turns."""
    ready = {name: make(task, optimizer) for name, make in contestants.items()}
    for once in ready.values():
        once()
    gc.collect()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds):
        # Each round begins with another one, so that none always follows the same neighbour.
        names = list(ready)[turn % len(ready) :] + list(ready)[: turn % len(ready)]
        for name in names:
            times[name].append(ready[name]())
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Take the median over rounds of one contestant over another."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def show(rows: dict[tuple[str, str], dict[str, list[float]]]) -> None:
    """Print a table a model and optimizer."""
    for (task, optimizer), times in rows.items():
        table = Table("", "us/iteration", "/ hand-written", "/ fused", title=f"{task}, {optimizer}")
        for name in times:
            fields = [f"{statistics.median(times[name]) * 1e6:.0f}"]
            fields += [f"{ratio(times, name, base):.3f}" for base in ("hand-written", "hand-written, fused")]
            table.add_row(name, *fields)
        Console(width=100).print(table)


def race_wrappers(task: Task, optimizer: str, rounds: int) -> None:
    """Race each wrapper with the feature that a hand-written loop has instead, and print a table."""
    from wrapping import FEATURES, hand_written, wrapped

    make, ours = OPTIMIZERS[optimizer]
    contestants: dict[str, Callable[[Task, str], Round]] = {}
    for name, (wrappers, body) in FEATURES.items():
        contestants[name] = lambda task, _, wrappers=wrappers: wrapped(task, ours, wrappers)
        contestants[f"{name}, by hand"] = lambda task, _, body=body: hand_written(task, make, body)
    times = race(task, optimizer, contestants, rounds)
    columns = ("", "us/iteration", "by hand", "/ by hand", "over bare", "by hand over bare", "the one / the other")
    table = Table(*columns, title=f"wrappers, {optimizer}")
    for name in FEATURES:
        hand = f"{name}, by hand"
        fields = [f"{statistics.median(times[each]) * 1e6:.0f}" for each in (name, hand)]
        over, by_hand = ratio(times, name, "bare step"), ratio(times, hand, "bare step, by hand")
        fields += [f"{number:.3f}" for number in (ratio(times, name, hand), over, by_hand, over / by_hand)]
        table.add_row(name, *fields)
    Console(width=100).print(table)


def peak(contestant: str) -> float:
    """Measure the peak memory of one contestant on the largest model, in a process of its own: MB over the start."""
    code = f"import overhead; overhead.report_peak({contestant!r})"
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    return float(done.stdout.split()[-1])


def report_peak(contestant: str) -> None:
    """Print the peak memory that a few iterations take, in MB over what imports take."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with redirect_stderr(io.StringIO()):
        once = OURS[contestant](TASKS["mlp 15M"], "adamw")
        for _ in range(5):
            once()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def endure(steps: int) -> None:
    """Run a tiny model for long, and print time and memory a tenth at a time."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    step = pr.TrainStep(model, lambda m, x: m(x).square().mean(), pr.optim.SGD(lr=1e-3, momentum=0.9))
    states = pr.TrainLoop(step, iters=steps, lease=True)(step.init(seed=0), [torch.ones(4, 4)] * 1000)
    for tenth in range(10):
        start = time.perf_counter()
        for _ in islice(states, steps // 10):
            pass
        each = (time.perf_counter() - start) / (steps // 10)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * os.sysconf("SC_PAGESIZE") / 2**20
        print(f"steps to {steps // 10 * (tenth + 1)}: {each * 1e6:.0f} us a step, {resident:.1f} MB")


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="race the installed peers too")
    parser.add_argument("--wrappers", action="store_true", help="race the wrappers instead")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--long", type=int, metavar="STEPS", help="a long run instead of a race")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", help="models whose name begins so")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="one optimizer only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        for name in OURS:
            print(f"{name}: {peak(name):.0f} MB")
    elif options.long:
        endure(options.long)
    elif options.wrappers:
        for task in [name for name in TASKS if name.startswith(options.only or "")]:
            for optimizer in [options.optimizer] if options.optimizer else OPTIMIZERS:
                print(task)
                race_wrappers(TASKS[task], optimizer, options.rounds)
    else:
        contestants = dict(OURS)
        if options.peers:
            from peers import PEERS

            contestants |= PEERS
        chosen = [name for name in TASKS if name.startswith(options.only or "")]
        with redirect_stderr(io.StringIO()):
            show(
                {
                    (task, optimizer): race(TASKS[task], optimizer, contestants, options.rounds)
                    for task in chosen
                    for optimizer in ([options.optimizer] if options.optimizer else OPTIMIZERS)
                }
            )


if __name__ == "__main__":
    main()
