"""Resume at every iteration, and the same bits with any number of workers, on every kind of data."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler

import purerun as pr
from purerun.testing import check_everything, check_resume, check_values_equal_lease, check_workers


class Samples(Dataset):
    """A dataset that draws from all three global generators for each sample."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        sample = self.data[index]
        return {"x": sample["x"] + torch.rand(()) + random.random() + float(np.random.rand()), "y": sample["y"]}


class Seeking(IterableDataset):
    """A stream that can begin anywhere."""

    def __init__(self, data):
        self.data = data

    def seek(self, epoch, position):
        return (self.data[(index + epoch) % len(self.data)] for index in range(position, len(self.data)))

    def __iter__(self):
        return self.seek(0, 0)


class Stateful:
    """An iterable of batches that says where it stands, as StatefulDataLoader does."""

    def __init__(self, data):
        self.data, self.next, self.start = data, 0, 0

    def __iter__(self):
        self.next, self.start = self.start, 0
        while self.next < len(self.data):
            rows = range(self.next, min(self.next + 8, len(self.data)))
            self.next = rows.stop
            yield {name: torch.stack([self.data[i][name] for i in rows]) for name in ("x", "y")}
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.start = state["next"]


def batches(data):
    """Cut data into a list of batches."""
    return [data.rows(part) for part in torch.arange(len(data)).split(8)]


def noisy(batch, chance):
    """Augment a whole batch."""
    return {**batch, "x": batch["x"] + chance.uniform(batch["x"].shape[1])}


LOADERS = {
    "in memory": lambda data: pr.Loader(data, batch_size=8, shuffle=True),
    "sequential": lambda data: pr.Loader(data, batch_size=8),
    "drop last": lambda data: pr.Loader(data, batch_size=8, shuffle=True, drop_last=True),
    "one batch": lambda data: pr.Loader(data, batch_size=32),
    "weighted": lambda data: pr.Loader(
        data, batch_size=8, order=pr.data.Weighted([1.0 + i for i in range(len(data))], num_samples=18)
    ),
    "infinite": lambda data: pr.Loader(data, batch_size=8, order=pr.data.Infinite(pr.data.Shuffle())),
    "samples": lambda data: pr.Loader(Samples(data), batch_size=8, shuffle=True),
    "batch sampler": lambda data: pr.Loader(
        Samples(data), batch_sampler=BatchSampler(RandomSampler(range(len(data))), 8, drop_last=False)
    ),
    "seeking stream": lambda data: pr.data.Stream(Seeking(data), batch_size=8),
    "stateful iterable": Stateful,
    "list": batches,
    "tuple": lambda data: tuple(batches(data)),
}
INEXACT = {
    "stream": lambda data: pr.data.Stream([data[i] for i in range(len(data))], batch_size=8),
    "torch's loader": lambda data: DataLoader(Samples(data), batch_size=8, shuffle=True),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("limit", [{"epochs": 2}, {"iters": 5}], ids=["epochs", "iters"])
def test_every_law_holds_on_every_kind_of_loader(make_run, loader, limit):
    """Loops by epoch and by iteration, begun anywhere."""
    if "epochs" in limit and loader is LOADERS["infinite"]:
        limit = {"iters": 7}
    run = make_run(loader=loader, **limit)

    check_everything(run.loop, run.state, run.loader, again=run.again)


@pytest.mark.filterwarnings("ignore::purerun.data.InexactResume")
@pytest.mark.parametrize("loader", INEXACT.values(), ids=INEXACT)
def test_what_must_be_skipped_is_still_exact_where_it_can_be(make_run, loader):
    """Iterables that give the same again whenever they are seeded the same."""
    run = make_run(loader=loader, epochs=2)

    check_resume(run.loop, run.state, run.loader, again=run.again)


def test_skipping_warns(make_run):
    """A weaker promise is said aloud."""
    run = make_run(loader=INEXACT["torch's loader"], epochs=1)
    first = next(iter(run.loop(run.state, run.loader)))
    with pytest.warns(pr.data.InexactResume, match="has no way to begin there"):
        next(iter(run.loop(first, run.loader)))


@pytest.mark.parametrize(
    "make",
    [
        lambda data: pr.Loader(Samples(data), batch_size=4, shuffle=True),
        lambda data: pr.Loader(data, batch_size=4, shuffle=True, batch_transform=noisy),
        lambda data: pr.Loader(Samples(data), batch_size=4, shuffle=True, persistent=False, prefetch=1, drop_last=True),
    ],
    ids=["samples", "batches", "short-lived"],
)
def test_workers_change_nothing(make_run, make):
    """No worker, one and two give the same batches, from the start and from the middle."""
    check_workers(make_run(loader=make).loader, workers=(0, 1, 2))


def test_a_run_resumes_with_workers(make_run):
    """Stopped with none, gone on with two, stopped in the middle of an epoch, and the other way round."""

    def none(data):
        return pr.Loader(Samples(data), batch_size=8, shuffle=True)

    def two(data):
        return pr.Loader(Samples(data), batch_size=8, shuffle=True, workers=2)

    for first, second in ((none, two), (two, none)):
        run, other = make_run(loader=first), make_run(loader=second)
        check_resume(run.loop, run.state, run.loader, at=[1, 3, 4], again=other.again)


def test_leases_work_with_workers(make_run):
    """Batches made ahead do not notice that states are emptied."""
    run = make_run(loader=lambda data: pr.Loader(Samples(data), batch_size=8, shuffle=True, workers=2), epochs=2)

    check_values_equal_lease(run.loop, run.state, run.loader)


@pytest.mark.parametrize(("first", "second"), [(8, 3), (3, 8), (5, 20)])
def test_the_batch_size_may_change_between_iterations(make_run, first, second):
    """No sample is lost or repeated when a run goes on with other batches."""

    def reading(size):
        return make_run(loader=lambda data: pr.Loader(data, batch_size=size, shuffle=True), epochs=1)

    run = reading(first)
    state = next(iter(run.loop(run.state, run.loader)))
    whole = torch.cat([batch["x"] for batch in run.loader.seek(run.state)])
    rest = torch.cat([batch["x"] for batch in reading(second).loader.seek(state)])

    assert torch.equal(whole[first:], rest)
