"""What a sweep saves: many members in one program, beside as many hand-written runs one after the other.

    python benchmarks/sweep.py                  # 16 and 64 seeds, mapped, and mapped and compiled
    python benchmarks/sweep.py --members 256    # another number
    python benchmarks/sweep.py --values         # in a loop that keeps the last state whole, instead of leasing it

The model is the 8-layer MLP of `overhead.py` with SGD and momentum, the thread is one, and the hand-written run
uses torch's fused optimizer.  The contestants take turns in short rounds; a ratio is the median over rounds of
"members times the hand-written iteration / one iteration of the sweep, in the same round".
"""

from __future__ import annotations

import argparse
import gc
import statistics

import torch
from models import TASKS, loss
from overhead import OPTIMIZERS, Round, drained, fresh, hand_written
from rich.console import Console
from rich.table import Table

import purerun as pr

TASK = TASKS["mlp 8x32"]
ITERS = 40
"""Iterations of one timed round of a sweep."""
WANTED = {(16, "compiled"): 10.0, (64, "compiled"): 15.0, (64, "mapped"): 4.0}


def sweep(members: int, *wrappers: pr.Wrapper, lease: bool) -> Round:
    """Train a population in the full loop."""
    model, batches = fresh(TASK)
    rules = [pr.initial.Fresh(TASK.model)]
    step = pr.TrainStep(model, loss, OPTIMIZERS["sgd"][1], engine="func", init=rules)
    step = pr.wrap(step, pr.Vmap(members), *wrappers)
    return drained(pr.TrainLoop(step, iters=10**9, lease=lease)(step.init(seed=0), batches), ITERS)


def race(counts: list[int], rounds: int, *, lease: bool) -> dict[tuple[int, str], list[float]]:
    """Let them take turns, and list how many times faster each sweep was in each round."""
    solo = hand_written(TASK, "sgd", fused=True)
    sweeps = {
        (count, kind): sweep(count, *wrappers, lease=lease)
        for count in counts
        for kind, wrappers in {"mapped": (), "compiled": (pr.Compile(),)}.items()
    }
    for once in (solo, *sweeps.values()):
        once()
    gc.collect()
    gains: dict[tuple[int, str], list[float]] = {name: [] for name in sweeps}
    for _ in range(rounds):
        for (count, kind), once in sweeps.items():
            # The hand-written run right before and right after, since other programs come and go.
            before, mine, after = solo(), once(), solo()
            gains[count, kind].append(count * (before + after) / 2 / mine)
    return gains


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--values", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("members", "", "times as fast", "quartiles", "wanted", title="8-layer MLP, SGD with momentum")
    for (count, kind), gains in race(options.members, options.rounds, lease=not options.values).items():
        low, middle, high = statistics.quantiles(gains, n=4)
        wanted = f"{WANTED[count, kind]:.0f}" if (count, kind) in WANTED else ""
        table.add_row(str(count), kind, f"{middle:.1f}", f"{low:.1f} to {high:.1f}", wanted)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
