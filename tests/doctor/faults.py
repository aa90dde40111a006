"""Faults, each by itself: the line with the mark `FAULT: name` is the guilty one."""

from __future__ import annotations

import itertools
import os
import random
import time
import uuid

import attrs
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, Dataset, IterableDataset, RandomSampler, get_worker_info

import purerun as pr

X = torch.linspace(-1, 1, 120).view(40, 3)
Y = torch.arange(40) % 2

NUMPY = np.random.default_rng(0)
PYTHON = random.Random(0)
TORCH = torch.Generator().manual_seed(0)
SEEN: list[float] = []
SHIFT = 0.0


class Pairs(Dataset):
    """Points and labels by index; subclasses get them wrong."""

    def __init__(self):
        self.own = np.random.default_rng(0)
        self.last = torch.zeros(3)
        self.data = X.clone()
        self.count = 0

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"x": X[index].clone(), "y": Y[index]}


class OwnGenerator(Pairs):
    def __getitem__(self, index):
        scale = self.own.normal()  # FAULT: own generator
        return {"x": X[index] * scale, "y": Y[index]}


class Mixing(Pairs):
    def __getitem__(self, index):
        mixed = 0.5 * X[index] + 0.5 * self.last
        self.last = X[index]  # FAULT: last sample
        return {"x": mixed.float(), "y": Y[index]}


class Caching(Pairs):
    """No fault: what it remembers is a cache."""

    def __init__(self):
        super().__init__()
        self.squares = None

    def __getitem__(self, index):
        self.count += 1
        if self.squares is None:
            self.squares = X.square()
        return {"x": self.squares[index].clone(), "y": Y[index]}


class GlobalChance(Pairs):
    def __getitem__(self, index):
        noise = np.random.rand()  # FAULT: numpy in workers
        return {"x": X[index] + float(noise), "y": Y[index]}


class Staying(Pairs):
    def __getitem__(self, index):
        return {"x": X[index] + float(np.random.rand()), "y": Y[index]}  # FAULT: numpy in workers that stay


class Viewing(Pairs):
    """No fault by itself: it hands out views of what it holds."""

    def __getitem__(self, index):
        return {"x": self.data[index], "y": Y[index]}


class ByWorker(Pairs):
    def __getitem__(self, index):  # FAULT: worker
        return {"x": X[index] * (1.0 if get_worker_info() is None else 2.0), "y": Y[index]}


class Failing(Pairs):
    def __getitem__(self, index):
        raise OSError("no such image")  # FAULT: broken dataset


def doubled_in_place(sample):
    sample["x"] *= 2  # FAULT: stored data
    return sample


def unseeded(sample):
    chance = np.random.default_rng()  # FAULT: unseeded
    return {**sample, "x": sample["x"] + chance.normal()}


def entropy(sample):
    byte = os.urandom(1)[0] + os.urandom(1)[0] * 256  # FAULT: entropy
    return {**sample, "x": sample["x"] + byte}


def clock(sample):
    now = time.perf_counter_ns() % 1000  # FAULT: clock
    return {**sample, "x": sample["x"] + now}


def ticket(sample):
    number = uuid.uuid4()  # FAULT: uuid
    return {**sample, "x": sample["x"] + number.int % 1000}


def pythons(sample):
    if PYTHON.random() < 0.5:  # FAULT: Random
        return {**sample, "x": -sample["x"]}
    return sample


def torchs(sample):
    return {
        **sample,
        "x": sample["x"]
        + torch.rand(  # FAULT: torch generator
            (),
            generator=TORCH,
        ),
    }


TURNS = itertools.count()


def once_in_three(sample):
    turn = next(TURNS)  # FAULT: turn
    return {**sample, "x": sample["x"] * (turn % 3 + 1)}


def reseeding(sample):
    """No fault: a generator made anew from the key of the sample."""
    chance = np.random.default_rng(torch.initial_seed())
    return {**sample, "x": sample["x"] + chance.normal()}


def globally(sample):
    shift = random.random()  # NOTE: python
    shift += np.random.rand()  # NOTE: numpy
    shift += torch.rand(()).item()  # NOTE: torch
    return {**sample, "x": sample["x"] + shift}


def noisy_collate(samples):
    batch = torch.utils.data.default_collate(samples)
    noise = NUMPY.normal(size=batch["x"].shape)  # FAULT: collate
    return {**batch, "x": batch["x"] + torch.from_numpy(noise).float()}


def noisy_batch(batch, chance):
    batch["x"] = batch["x"] + float(NUMPY.normal())  # FAULT: batch transform
    return batch


class OwnOrder:
    def __len__(self):
        return 5

    def __iter__(self):
        for _ in range(5):
            yield torch.randint(40, (8,), generator=TORCH).tolist()  # FAULT: batch sampler


def torch_sampler():
    return BatchSampler(RandomSampler(range(40)), batch_size=8, drop_last=False)


class Pages:
    def __init__(self):
        self.page = 0

    def __iter__(self):  # FAULT: no seek
        for _ in range(5):
            self.page = (self.page + 1) % 7  # FAULT: page
            yield {"x": X[:8] + self.page, "y": Y[:8]}


class Readable(IterableDataset):
    def __iter__(self):  # FAULT: no seek in a stream
        yield from ({"x": x, "y": y} for x, y in zip(X, Y, strict=True))


class Wrong:
    def seek(self, epoch, position):  # FAULT: wrong seek
        return ({"x": X[place] + position, "y": Y[place]} for place in range(position, 40))


def pages():  # FAULT: only once
    for start in range(0, 40, 8):
        yield {"x": X[start : start + 8], "y": Y[start : start + 8]}


class Net(nn.Module):
    """A small net; subclasses get it wrong."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))
        self.calls = 0
        self.mean = torch.zeros(4)
        self.chance = torch.Generator().manual_seed(0)

    def forward(self, x):
        return self.inner(x)


class Counting(Net):
    def forward(self, x):
        self.calls += 1  # FAULT: counter
        return self.inner(x)


class Averaging(Net):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(3)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)  # FAULT: running mean
        return self.inner(x - self.mean)


class Listing(Net):
    def forward(self, x):
        SEEN.append(float(x.mean()))  # FAULT: global list
        return self.inner(x) * (1 + 0.1 * len(SEEN))


class Drawing(Net):
    def forward(self, x):
        noise = torch.rand(x.shape, generator=self.chance)  # FAULT: generator in a module
        return self.inner(x + noise)


class Scaling(Net):
    def forward(self, x):
        return self.inner(x.mul_(2))  # FAULT: input in place


class Broken(Net):
    def __init__(self):
        super().__init__()
        raise OSError("no such weights")  # FAULT: broken model


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 2))
        self.spare = nn.Linear(3, 2)  # FAULT: unused layer

    def forward(self, x):
        return self.inner(x)


class Cached(Net):
    def forward(self, x):
        if self.calls == 0:
            self.calls = 1  # FAULT: cache in a module
        return self.inner(x)


class Judging(Net):
    def forward(self, x):
        if not self.training:
            self.calls += 1  # FAULT: counter in evaluation
        return self.inner(x)


def loss(model, batch):
    return cross_entropy(model(batch["x"]), batch["y"])


def exact_loss(model, batch):
    """No fault: made for batches of 20."""
    return cross_entropy(model(batch["x"].view(20, 3)), batch["y"])


def writing_loss(model, batch):
    batch["x"] += 1  # FAULT: batch in place
    return loss(model, batch)


def seeding_loss(model, batch):
    torch.manual_seed(0)  # FAULT: manual seed
    return loss(model, batch)


def timed_loss(model, batch):
    begun = time.perf_counter_ns()  # FAULT: clock in a loss
    return loss(model, batch) * (1 + begun % 1000)


def shifted_loss(model, batch):
    global SHIFT  # noqa: PLW0603 - this is the fault
    SHIFT += 0.1  # FAULT: global number
    return loss(model, batch) + SHIFT


def threading_loss(model, batch):
    torch.set_num_threads(torch.get_num_threads() + 1)  # FAULT: threads
    return loss(model, batch)


def failing_loss(model, batch):
    return cross_entropy(model(batch["x"]), batch["labels"])  # FAULT: broken loss


def remembering():
    """Make a loss with a memory in its closure."""
    history = []

    def closed(model, batch):
        value = loss(model, batch)
        history.append(value.item())  # FAULT: closure
        return value * len(history)

    return closed


class Scores(pr.hooks.Hook):
    """Writes a number into the scores; subclasses get it wrong."""

    writes = ("scores",)

    def slots(self, state):
        return {"scores": {"mine": torch.zeros((), dtype=torch.float64)}}

    def __call__(self, state):
        return state.replace(scores={"mine": float(state["iter"])})


CALLS: list[int] = []


class Global(Scores):
    def __call__(self, state):
        CALLS.append(1)  # FAULT: global list of a hook
        return state.replace(scores={"mine": float(len(CALLS))})


class Silent(Scores):
    def __call__(self, state):
        CALLS.append(1)  # FAULT: memory without effect
        return state.replace(scores={"mine": 1.0})


LAST: dict[str, float] = {}


class Storing(Scores):
    def __call__(self, state):
        LAST["iter"] = float(state["iter"])  # FAULT: the last state in a dict
        return state.replace(scores={"mine": 1.0})


class Turning(Scores):
    """Is due each second time that it is asked."""

    asked: list[int] = []  # noqa: RUF012 - this is the fault

    def due(self, state):
        self.asked.append(1)  # FAULT: due
        return len(self.asked) % 2 == 0


class Undeclared(Scores):
    def __call__(self, state):
        rate = float(state["hyper", "lr"])
        changed = state.replace(hyper={"lr": rate / 2})  # FAULT: undeclared
        return changed.replace(scores={"mine": rate})


class Writing(Scores):
    def __call__(self, state):
        weight = next(iter(state["params"].values()))
        weight.zero_()  # FAULT: state in place
        return state.replace(scores={"mine": 1.0})


class Chancy(Scores):
    def __call__(self, state):
        number = random.random()  # FAULT: chance in a hook
        return state.replace(scores={"mine": number})


class Clocked(Scores):
    def __call__(self, state):
        return state.replace(scores={"mine": time.perf_counter()})  # FAULT: clock in a hook


class Starting(Scores):
    def start(self, state):
        return state.replace(hyper={"lr": 1.0})  # FAULT: undeclared at the start


@attrs.frozen
class Share(pr.metrics.Metric):
    """The share of points that are told right; subclasses get it wrong."""

    def init(self, device="cpu"):
        return {"right": torch.zeros((), dtype=torch.float64), "all": torch.zeros((), dtype=torch.int64)}

    def update(self, tally, output, batch):
        right = (output.argmax(1) == batch["y"]).sum()
        return {"right": tally["right"] + right, "all": tally["all"] + len(output)}

    def merge(self, a, b):
        return {name: a[name] + b[name] for name in a}

    def compute(self, tally):
        return tally["right"] / tally["all"]


class KeepsFirst(Share):
    def merge(self, a, b):
        if a["all"]:
            return a  # FAULT: merge
        return b


class HalfMerged(Share):
    """The score of nobody shows it: all are wrong."""

    def update(self, tally, output, batch):
        return {"right": tally["right"], "all": tally["all"] + len(output)}

    def merge(self, a, b):
        return {"right": a["right"] + b["right"], "all": a["all"]}  # FAULT: half merged


class Emptying(Share):
    def compute(self, tally):
        score = tally["right"] / tally["all"]
        tally["all"].zero_()  # FAULT: compute
        return score


class InPlace(Share):
    def update(self, tally, output, batch):
        tally["right"] += (output.argmax(1) == batch["y"]).sum()  # FAULT: update
        return {"right": tally["right"], "all": tally["all"] + len(output)}


class Forgetting(Share):
    seen: list = []  # noqa: RUF012 - this is the fault

    def update(self, tally, output, batch):
        self.seen.append(float(output.mean()))  # FAULT: class list
        return super().update(tally, output, batch)

    def compute(self, tally):
        return torch.tensor(sum(self.seen) / len(self.seen))


class NotNeutral(Share):
    def init(self, device="cpu"):
        return {"right": torch.ones((), dtype=torch.float64), "all": torch.ones((), dtype=torch.int64)}  # FAULT: init


class MeanOfMeans(Share):
    def update(self, tally, output, batch):  # NOTE: mean of means
        right = (output.argmax(1) == batch["y"]).double().mean()
        return {"right": tally["right"] + right, "all": tally["all"] + 1}


@attrs.frozen
class Late(pr.Wrapper):
    """Keeps gradients in a list instead of a slot."""

    kept: list = attrs.field(factory=list)

    def write(self, step, draft, grads):
        self.kept.append(1)  # FAULT: wrapper
        if len(self.kept) % 2:
            step.write(draft, grads)


@attrs.frozen
class Sharing(pr.Wrapper):  # FAULT: shared tensor
    """Hands on a tensor in two places."""

    @property
    def slot(self):
        return "twin"

    def memory(self, step, draft):
        return {"weight": next(iter(draft["params"].values())).clone()}

    def write(self, step, draft, grads):
        step.write(draft, grads)
        draft["twin"] = {"weight": next(iter(draft["params"].values()))}


recipe = pr.Recipe(
    model=pr.Module(Net),
    loss=loss,
    train=pr.Loader(pr.data.Tensors(x=X, y=Y), batch_size=8, shuffle=True),
    val=pr.Loader(pr.data.Tensors(x=X, y=Y), batch_size=20),
    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9),
    metrics={"share": Share()},
    hooks=[Scores(every="1 iter")],
    epochs=3,
    device="cpu",
    threads=1,
)
"""A sound recipe, of which a fault takes one part."""
