"""The recipe that is interrupted: all that has to go on as if nothing had happened, in 45 iterations.

Environment variables let a test be exact about the moment, by the number of an iteration that begins:

- `DIE_AT=7`: the process kills itself; with `DIE_STEP=4` only when it is about to change the disk for the fourth time.
- `HOLD_AT=7,9`: it makes the file `held`, and waits for the file `go`.
- `HANG_AT=7`: from then on the disk hangs: whoever syncs a file of an unfinished save waits in the same way.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path

import torch
from torch import nn

import purerun as pr


class Net(nn.Module):
    """Batch norm and dropout, and weights of any size that lie idle: what is saved is as large as a test needs it."""

    def __init__(self, idle: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.classify = nn.Dropout(0.3), nn.Linear(4 * 6 * 6, 3)
        self.register_buffer("idle", torch.arange(idle, dtype=torch.float32))

    def forward(self, x):
        return self.classify(self.drop(torch.relu(self.norm(self.conv(x))).flatten(1)))


def loss(model, batch):
    """A named term beside the loss; batch norm has counted the iterations."""
    error = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
    interrupt(int(model.norm.num_batches_tracked))
    return {"error": error, "size": 0.01 * model.classify.weight.square().sum()}


def interrupt(iteration: int) -> None:
    if at("DIE_AT", iteration):
        if "DIE_STEP" in os.environ:
            sys.addaudithook(Countdown(int(os.environ["DIE_STEP"])))
        else:
            die()
    if at("HOLD_AT", iteration):
        hold()
    if at("HANG_AT", iteration):
        os.fsync = hang


def at(variable: str, iteration: int) -> bool:
    return str(iteration) in os.environ.get(variable, "").split(",")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hold() -> None:
    Path("held").touch()
    while not Path("go").exists():
        time.sleep(0.002)
    Path("go").unlink()


def hang(handle: int, sync=os.fsync) -> None:
    if ".new/" in str(Path(f"/proc/self/fd/{handle}").readlink()):
        hold()
    sync(handle)


class Countdown:
    """Hears of what Python is about to do, and dies before one of the changes of a directory."""

    CHANGES = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"})

    def __init__(self, steps: int) -> None:
        self.numbers, self.steps = count(1), steps

    def __call__(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in self.CHANGES or writes) and next(self.numbers) == self.steps:
            die()


def data(count: int, seed: int) -> pr.data.Tensors:
    generator = torch.Generator().manual_seed(seed)
    return pr.data.Tensors(
        image=torch.rand(count, 1, 8, 8, generator=generator), label=torch.randint(3, (count,), generator=generator)
    )


# An epoch has 15 iterations, the last of a smaller batch.  Windows of 3, checkpoints after 2, validations after 4
# and lines of the log after 7 iterations meet in all ways; the end has a checkpoint and a line of its own.
recipe = pr.Recipe(
    model=pr.Module(Net, idle=500_000),
    loss=loss,
    train=pr.Loader(
        data(59, seed=1),
        batch_size=4,
        shuffle=True,
        batch_transform=pr.data.Compose([pr.data.Shift(1), pr.data.Noise(0.1)]),
    ),
    val=pr.Loader(data(16, seed=2), batch_size=16),
    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9),
    schedule=[pr.schedule.Linear(0.1, end=7, by="iter"), pr.schedule.Cosine(period=3)],
    wrappers=[pr.Accumulate(3), pr.EMA(0.9)],
    metrics={"accuracy": pr.metrics.Accuracy()},
    weights="ema",
    validate="4 iters",
    hooks=[pr.hooks.ReduceOnPlateau("accuracy", rule="greater", patience=1, factor=0.7, every="4 iters")],
    epochs=3,
    log="7 iters",
    checkpoint="2 iters",
    keep=3,
    best="auto",
    device="cpu",
    threads=1,
)
