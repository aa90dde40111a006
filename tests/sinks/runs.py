"""A small run for the tests of sinks: shuffled data, dropout, a schedule, validation scores with their counter."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path

import attrs
import torch
from torch import nn

import purerun as pr
from purerun.checkpoint import last, name_of
from purerun.hooks import Hook

CLOCKS = {"time", "data_time", "eta", "timestamp", "memory"}
ITERS, PER_EPOCH = 12, 4


@attrs.frozen
class Judge(Hook):
    """Writes scores as a validation does: a value, and the iteration that was judged."""

    before: bool = False
    prefix: str = ""

    @property
    def writes(self):
        return ("scores",)

    def slots(self, state):
        blank = {"size": torch.tensor(float("nan"), dtype=torch.float64), "iter": torch.tensor(-1)}
        return {"scores": {self.prefix + name: leaf for name, leaf in blank.items()}}

    def start(self, state):
        return self(state) if self.before else state

    def __call__(self, state):
        size = torch.stack([leaf.square().sum() for leaf in state["params"].values()]).sum().double()
        return state.replace(scores={self.prefix + "size": size, self.prefix + "iter": state["iter"]})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop, self.outer = nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)

    def forward(self, x):
        return self.outer(self.drop(self.inner(x)))


def loss(model, batch):
    x, y = batch
    error = (model(x)[:, 0] - y).square().mean()
    size = sum(p.square().sum() for p in model.parameters())
    return {"error": error, "size": 0.01 * size}


def step():
    torch.manual_seed(0)
    return pr.TrainStep(
        Net(), loss, pr.optim.SGD(lr=0.1, momentum=0.9), schedule=[pr.schedule.MultiStep([5, 9], by="iter")]
    )


def loader():
    generator = torch.Generator().manual_seed(1)
    data = pr.data.Tensors(torch.randn(11, 3, generator=generator), torch.randn(11, generator=generator))
    return pr.Loader(data, batch_size=3, shuffle=True)


def states(state=None, *, lease=False, iters=ITERS, hooks=(Judge(every="1 epoch", before=True),)):
    """The run, from its beginning or from a state of it."""
    train = step()
    loop = pr.TrainLoop(train, iters=iters, hooks=hooks, lease=lease)
    return loop(train.init(seed=0) if state is None else state, loader())


def lines(path, *, clocks=False):
    """The lines of a log, read as strictly as any JSON reader may, without what a clock says."""

    def refuse(constant):
        raise ValueError(constant)

    read = [json.loads(line, parse_constant=refuse) for line in Path(path).read_text().splitlines()]
    return [{name: value for name, value in line.items() if clocks or name not in CLOCKS} for line in read]


def written(run, iter):
    """Wait until the thread that writes has finished a checkpoint, pointer and all; not longer than a test may take."""
    while last(run) != name_of(iter):
        time.sleep(0.001)


def drain(iterator):
    """Take all, and give the last one."""
    return deque(iterator, maxlen=1).pop()
