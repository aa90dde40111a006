"""What saving, loading and seeking cost, beside `torch.save` and `torch.load`, in one run.

    python benchmarks/saving.py

Medians of rounds in which the contestants take turns.  `sync` is what everything is held against: a plain
`torch.save` of the same tensors, and an fsync.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import purerun as pr
from purerun.identity import named_leaves, read_bytes
from purerun.sinks.desk import Desk
from purerun.testing import counted

LAYER = 1024  # a layer of 1024 x 1024 floats is 4 MiB, and its momentum too


class Wide(torch.nn.Module):
    """Many weights and little to compute with them: the worst case for whoever must copy them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.randn(LAYER, LAYER) / LAYER for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by one matrix after the other."""
        for weight in self.weights:
            x = x @ weight
        return x


def seconds(action: Callable[[], object]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def durable(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Save as most loops do, and wait for the disk."""
    torch.save(tensors, file)
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def median(values: list[float]) -> str:
    """Say a median of seconds, and the extremes."""
    return f"{1000 * statistics.median(values):9.2f} ms   ({1000 * min(values):.2f} to {1000 * max(values):.2f})"


def show(name: str, values: list[float], bar: list[float] | None = None, limit: str = "") -> None:
    """Print a row: the times, and the median of their ratios to others of the same rounds."""
    ratio = ""
    if bar is not None:
        ratio = f"   {statistics.median(a / b for a, b in zip(values, bar, strict=True)):7.4f} x{limit}"
    print(f"{name:44s}{median(values)}{ratio}")


def saving(folder: Path, layers: int, rounds: int) -> None:
    """Time files of one state, written and read.  Each is written under a new name, as a run does."""
    state = run(layers).init(seed=0)
    tensors = {name: leaf.clone() for name, leaf in named_leaves(state)}
    size = sum(leaf.nbytes for leaf in tensors.values())
    print(f"\na state of {size / 1e6:.0f} MB in {len(tensors)} leaves, {rounds} rounds")
    plain, ours = folder / "plain.pth", folder / "ours"
    contestants: dict[str, Callable[[], object]] = {
        "sync": lambda: durable(plain, tensors),
        "pr.save": lambda: pr.save(state, ours),
        "torch.load(mmap=True)": lambda: torch.load(plain, mmap=True, weights_only=True),
        "pr.load(verify=False)": lambda: pr.load(ours, verify=False),
        "one sha256 pass": lambda: hashlib.sha256(memoryview(data)).digest(),
        "pr.load": lambda: pr.load(ours),
    }
    data = b"".join(bytes(read_bytes(leaf)) for leaf in tensors.values())
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, action in contestants.items():
            times[name].append(seconds(action))
        plain.unlink()
        shutil.rmtree(ours)
    times = {name: values[1:] for name, values in times.items()}  # the first round warms the caches
    show("torch.save and fsync (sync)", times["sync"])
    show("pr.save, durable and hashed", times["pr.save"], times["sync"], "  of sync, at most 1")
    show("torch.load(mmap=True)", times["torch.load(mmap=True)"])
    show("pr.load(verify=False)", times["pr.load(verify=False)"], times["torch.load(mmap=True)"], "  of it, at most 1")
    show("one sha256 pass, one thread", times["one sha256 pass"])
    show("pr.load, verified", times["pr.load"], times["one sha256 pass"], "  of it, at most 1.2")


def run(layers: int) -> pr.Step:
    """Make a training step with many weights."""
    return pr.TrainStep(Wide(layers), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=1e-6, momentum=0.9))


def stall(folder: Path, layers: int, rounds: int, batch: int) -> None:
    """Time what a save costs the loop: the call, and all the steps around it."""
    folder.mkdir()
    step = run(layers)
    batches = [torch.randn(batch, LAYER)] * 10_000
    sync, calls, whole = [], [], []
    states = pr.TrainLoop(step, iters=10_000, lease=True)(step.init(seed=0), batches)
    saver = pr.sinks.Checkpoint(folder / "run", every="1 iters", keep=1).open(Desk())
    state = next(states)
    pace = statistics.median(seconds(lambda: next(states)) for _ in range(10))
    window = max(4, int(4 / pace))  # long enough for the thread that writes
    for _ in range(rounds + 1):
        state = next(states)
        tensors = {name: leaf.clone() for name, leaf in named_leaves(state)}
        sync.append(seconds(lambda tensors=tensors: durable(folder / "plain.pth", tensors)))
        del tensors
        quiet = list(steps(states, window))
        state = next(states)
        begin = time.perf_counter()
        saver.see(state)
        calls.append(time.perf_counter() - begin)
        del state
        busy = list(steps(states, window))
        usual = statistics.median(quiet)
        # Steps that took no longer than usual are noise, not cost.
        whole.append(calls[-1] + sum(busy) - window * usual)
    sync, calls, whole = sync[1:], calls[1:], whole[1:]
    print(f"\na loop with leases, batches of {batch}, {window} steps of {1000 * pace:.0f} ms around each save")
    show("torch.save and fsync (sync)", sync)
    show("handing a state over", calls, sync, "  of sync, at most 0.01")
    show("the whole save, steps around it included", whole, sync, "  of sync, at most 0.15")
    saver.close(None)
    states.close()


def steps(states: Iterator[pr.State], count: int) -> Iterator[float]:
    """Time steps one by one, keeping none of their states."""
    for _ in range(count):
        begin = time.perf_counter()
        next(states)
        yield time.perf_counter() - begin


def seeking(rounds: int) -> None:
    """Time the first batch after going on early and late, in many epochs and in one that is long."""
    small = pr.Loader(pr.data.Tensors(torch.randn(60_000, 16)), batch_size=64, shuffle=True)
    long = pr.Loader(range(10**9), batch_size=64, order=pr.data.Shuffle("feistel"))
    print(f"\nthe first batch after resuming, {rounds} rounds")
    for name, loader, places in (
        ("60 000 samples", small, [(0, 10 * 64), (1066, 3 * 64)]),
        ("10^9 samples, one epoch", long, [(0, 10 * 64), (0, 1_000_000 * 64)]),
    ):
        times: list[list[float]] = [[] for _ in places]
        for _ in range(rounds):
            for place, values in zip(places, times, strict=True):
                state = counted(epoch=place[0], cursor=place[1])
                values.append(seconds(lambda state=state, loader=loader: next(iter(loader.seek(state)))))
        show(f"{name}: iteration 10", times[0])
        show(f"{name}: iteration 1 000 000", times[1], times[0], "  of it, about 1")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=48, help="4 MiB of weights and 4 MiB of momentum each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder unless given")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=wanted.folder) as name:
        saving(Path(name), wanted.layers, wanted.rounds)
        # A batch of usual size, and one so small that the loop does little but move its weights through memory.
        for batch in (256, 8):
            stall(Path(name) / str(batch), wanted.layers, wanted.rounds, batch)
    seeking(20 * wanted.rounds)


if __name__ == "__main__":
    main()
