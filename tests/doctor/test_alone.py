"""Each fault by itself: it is found in its part, and its line is named."""

from __future__ import annotations

import attrs
import pytest
from torch.utils.data import DataLoader

import purerun as pr
from purerun.doctor import examine
from tests.doctor import faults
from tests.doctor.faults import recipe
from tests.doctor.marks import marked, pointed

MARKS = marked("faults.py")


def data(dataset=None, **options):
    """Make a change of the training data."""
    return {"train": pr.Loader(dataset or faults.Pairs(), batch_size=8, **options)}


def hook(kind):
    """Make a change of the hooks."""
    return {"hooks": [kind(every="1 iter")]}


def metric(kind):
    """Make a change of the metrics."""
    return {"metrics": {"share": kind()}}


def model(kind):
    """Make a change of the model."""
    return {"model": pr.Module(kind)}


CASES = {
    "own generator": ("train.dataset", data(faults.OwnGenerator())),
    "last sample": ("train.dataset", data(faults.Mixing())),
    "broken dataset": ("train.dataset", data(faults.Failing())),
    "unseeded": ("train.transform", data(transform=faults.unseeded)),
    "entropy": ("train.transform", data(transform=faults.entropy)),
    "clock": ("train.transform", data(transform=faults.clock)),
    "uuid": ("train.transform", data(transform=faults.ticket)),
    "Random": ("train.transform", data(transform=faults.pythons)),
    "torch generator": ("train.transform", data(transform=faults.torchs)),
    "turn": ("train.transform", data(transform=faults.once_in_three)),
    "collate": ("train.collate", data(collate=faults.noisy_collate)),
    "batch transform": ("train.batch_transform", data(batch_transform=faults.noisy_batch)),
    "batch sampler": ("train.batch_sampler", {"train": pr.Loader(faults.Pairs(), batch_sampler=faults.OwnOrder())}),
    "stored data": ("train", data(faults.Viewing(), transform=faults.doubled_in_place)),
    "worker": ("train", data(faults.ByWorker())),
    "numpy in workers": ("train", {"train": DataLoader(faults.GlobalChance(), batch_size=8, num_workers=2)}),
    "numpy in workers that stay": (
        "train",
        {"train": DataLoader(faults.Staying(), batch_size=8, num_workers=1, persistent_workers=True)},
    ),
    "no seek in a stream": ("train", {"train": pr.data.Stream(faults.Readable(), batch_size=8)}),
    "wrong seek": ("train", {"train": pr.data.Stream(faults.Wrong(), batch_size=8)}),
    "only once": ("train", {"train": faults.pages()}),
    "counter": ("model", model(faults.Counting)),
    "cache in a module": ("model", model(faults.Cached)),
    "running mean": ("model", model(faults.Averaging)),
    "global list": ("model", model(faults.Listing)),
    "generator in a module": ("model", model(faults.Drawing)),
    "input in place": ("model", model(faults.Scaling)),
    "unused layer": ("model", model(faults.Unused)),
    "broken model": ("model", model(faults.Broken)),
    "counter in evaluation": ("forward", model(faults.Judging)),
    "batch in place": ("loss", {"loss": faults.writing_loss}),
    "manual seed": ("loss", {"loss": faults.seeding_loss}),
    "clock in a loss": ("loss", {"loss": faults.timed_loss}),
    "global number": ("loss", {"loss": faults.shifted_loss}),
    "threads": ("loss", {"loss": faults.threading_loss}),
    "broken loss": ("loss", {"loss": faults.failing_loss}),
    "closure": ("loss", {"loss": faults.remembering()}),
    "global list of a hook": ("hooks.0", hook(faults.Global)),
    "memory without effect": ("hooks.0", hook(faults.Silent)),
    "the last state in a dict": ("hooks.0", hook(faults.Storing)),
    "undeclared": ("hooks.0", hook(faults.Undeclared)),
    "undeclared at the start": ("hooks.0", hook(faults.Starting)),
    "state in place": ("hooks.0", hook(faults.Writing)),
    "chance in a hook": ("hooks.0", hook(faults.Chancy)),
    "clock in a hook": ("hooks.0", hook(faults.Clocked)),
    "merge": ("metrics.share", metric(faults.KeepsFirst)),
    "half merged": ("metrics.share", metric(faults.HalfMerged)),
    "compute": ("metrics.share", metric(faults.Emptying)),
    "update": ("metrics.share", metric(faults.InPlace)),
    "class list": ("metrics.share", metric(faults.Forgetting)),
    "init": ("metrics.share", metric(faults.NotNeutral)),
    "wrapper": ("wrappers.0", {"wrappers": [faults.Late()]}),
    "shared tensor": ("wrappers.0", {"wrappers": [faults.Sharing()]}),
    "due": ("run", hook(faults.Turning)),
}


@pytest.mark.parametrize(("mark", "part", "changes"), [(mark, *case) for mark, case in CASES.items()], ids=[*CASES])
def test_the_fault_is_found_and_its_line_named(mark, part, changes):
    """And nothing else is accused."""
    findings = examine(attrs.evolve(recipe, **changes), iters=2, workers=2 if mark == "worker" else 0)

    assert [(part, MARKS[mark])] == [(each.part, pointed(each)) for each in findings if each.kind == "fault"]


def test_every_planted_fault_is_looked_for():
    """No mark is left over but those of a source with two faults and of notes."""
    elsewhere = {"no seek", "page", "python", "numpy", "torch", "mean of means"}

    assert {*MARKS} == {*CASES} | elsewhere
