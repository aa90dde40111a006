"""Sound recipes: no fault is found where there is none, and what is only worth knowing is a note."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAUROC

import purerun as pr
from purerun.doctor import examination, examine
from purerun.recipe import load
from tests.doctor import faults
from tests.doctor.faults import recipe
from tests.doctor.marks import marked, pointed

MARKS = marked("faults.py")


def data(dataset=None, **options):
    """Make a change of the training data."""
    return {"train": pr.Loader(dataset or faults.Pairs(), batch_size=8, **options)}


def mean(output, batch):
    """Measure something."""
    return output.mean()


def second(output):
    """Take the score of the second class."""
    return output.softmax(1)[:, 1]


def criterion(output, batch):
    """Measure the loss."""
    return cross_entropy(output, batch["y"])


def taking_turns(steps, state, batch):
    """Call one of the steps on a batch."""
    return steps["two" if int(state["iter"]) % 3 == 2 else "one"](state, batch)


SOUND = {
    "plain": {},
    "a cache in the data set": data(faults.Caching(), shuffle=True),
    "a generator anew for each sample": data(transform=faults.reseeding),
    "a sampler of torch's": {"train": pr.Loader(faults.Pairs(), batch_sampler=faults.torch_sampler())},
    "an endless order": {**data(order=pr.data.Infinite()), "epochs": None, "iters": 9},
    "a list of batches": {
        "train": [{"x": faults.X[:8], "y": faults.Y[:8]}, {"x": faults.X[8:20], "y": faults.Y[8:20]}]
    },
    "wrappers": {"wrappers": [pr.Accumulate(2), pr.EMA(0.9)], "weights": "ema"},
    **{
        name: {"wrappers": wrappers}
        for name, wrappers in {
            "micro-batches": [pr.Microbatch(2)],
            "bfloat16": [pr.Precision("bfloat16")],
            "float16": [pr.Precision("float16"), pr.EMA(0.9)],
            "clipped": [pr.Clip(norm=1.0)],
            "skipped": [pr.SkipNonFinite(3)],
            "recomputed": [pr.Remat("*")],
            "all at once": [
                pr.Microbatch(2),
                pr.Precision("bfloat16"),
                pr.SkipNonFinite(3),
                pr.Clip(norm=1.0),
                pr.Accumulate(2),
                pr.EMA(0.9),
            ],
        }.items()
    },
    "first weights": {"init": [pr.initial.Normal("*", std=0.1)]},
    "two steps": {
        "loss": None,
        "optimizer": None,
        "steps": {
            "one": pr.Part(loss=recipe.loss, optimizer=recipe.optimizer, wrappers=[pr.EMA(0.9)]),
            "two": pr.Part(loss=recipe.loss, optimizer=pr.optim.Adam(), wrappers=[pr.Accumulate(2)]),
        },
        "weights": "ema/one",
    },
    "steps that take turns": {
        "loss": None,
        "optimizer": None,
        "steps": {
            "one": pr.Part(loss=recipe.loss, optimizer=recipe.optimizer, wrappers=[pr.Clip(norm=1.0)]),
            "two": pr.Part(loss=recipe.loss, optimizer=pr.optim.Adam(), wrappers=[pr.EMA(0.9)]),
        },
        "alternate": taking_turns,
    },
    "a sweep": {
        "engine": "func",
        "wrappers": [pr.Vmap(3, hyper={"lr": [0.1, 0.01, 0.001]})],
        "metrics": {"accuracy": pr.metrics.Each(3, pr.metrics.Accuracy())},
        "hooks": [],
    },
    "batches that are cut": {
        "train": pr.Loader(faults.Pairs(), batch_size=32, drop_last=True),
        "wrappers": [pr.Microbatch(2), pr.DataParallel(shards=8)],
    },
    "a line search": {"optimizer": pr.optim.Torch(torch.optim.LBFGS, lr=0.1, max_iter=4)},
    "schedules": {"optimizer": pr.optim.AdamW(lr=0.01), "schedule": [pr.schedule.Cosine(period=3)]},
    "a plateau": {"hooks": [pr.hooks.ReduceOnPlateau("share", rule="greater")]},
    "many metrics": {"metrics": {"last": pr.metrics.Last(mean), "loss": pr.metrics.Loss(criterion)}},
    "a metric of torchmetrics": {"metrics": {"auroc": pr.metrics.Torchmetrics(BinaryAUROC(), preds=second)}},
    "nothing to validate on": {"val": None, "metrics": {}, "hooks": []},
    "seven samples": data(torch.utils.data.Subset(faults.Pairs(), range(7))),
}


@pytest.mark.parametrize("changes", SOUND.values(), ids=SOUND)
def test_nothing_is_found(changes):
    """And no part is left out."""
    every = examination(attrs.evolve(recipe, **changes), iters=3, workers=0)

    assert [] == [finding for each in every for finding in each.findings]
    assert [] == [each.part for each in every if each.skipped]


class Plain(torch.nn.Module):
    """A net without anything but layers."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 2)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.slow
def test_a_compiled_step_passes():
    """With wrappers around it."""
    wrappers = [pr.Compile("grad"), pr.Accumulate(2), pr.EMA(0.9)]
    changed = attrs.evolve(recipe, model=pr.Module(Plain), wrappers=wrappers)
    every = examination(changed, iters=3, workers=0)

    assert [] == [finding for each in every for finding in each.findings]
    assert [] == [each.part for each in every if each.skipped]


def test_the_digits_pass():
    """With workers, and across the end of an epoch."""
    every = examination(load(Path(__file__).parent.parent.parent / "recipes" / "digits.py"), iters=4)

    assert [] == [finding for each in every for finding in each.findings]
    assert "train.batch_transform" in [each.part for each in every]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_dataloader_is_judged_honestly(workers):
    """Its batches are the same again, but it has to load what comes before: a note, no fault."""
    loader = DataLoader(faults.Pairs(), batch_size=8, shuffle=True, num_workers=workers)
    (note,) = examine(attrs.evolve(recipe, train=loader, hooks=[], val=None, metrics={}), iters=2)

    assert ("train", "note") == (note.part, note.kind)
    assert "DataLoader cannot begin in the middle" in note.message
    assert "here the same came after it" in note.message


def test_a_dataloader_with_an_order_of_its_own_is_a_fault():
    """No line of the user's is to blame, but the generator is named."""
    loader = DataLoader(faults.Pairs(), batch_size=8, shuffle=True, generator=torch.Generator())
    order, place = examine(attrs.evolve(recipe, train=loader, val=None, metrics={}), iters=2)

    assert [("train", "fault", ""), ("train", "note", "")] == [(x.part, x.kind, x.where) for x in (order, place)]
    assert "`DataLoader.generator`" in order.message


def test_draws_from_the_global_generators_are_noted():
    """A Loader puts them at a key for each sample: pure, and worth knowing."""
    notes = examine(attrs.evolve(recipe, **data(transform=faults.globally)), iters=2, workers=0)

    assert {"note"} == {each.kind for each in notes}
    assert [MARKS[name] for name in ("python", "numpy", "torch")] == [pointed(each) for each in notes]


def test_a_mean_of_means_is_noted():
    """It merges as it should; but a batch that was cut otherwise scores otherwise."""
    (note,) = examine(attrs.evolve(recipe, metrics={"share": faults.MeanOfMeans()}), iters=2, workers=0)

    assert ("metrics.share", "note", MARKS["mean of means"]) == (note.part, note.kind, pointed(note))


def test_the_process_is_left_as_it_was():
    """Whatever the parts did: modes, generators, and the tracing of a debugger."""
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    examine(attrs.evolve(recipe, loss=faults.threading_loss), iters=2, workers=0)

    assert before[:2] == (torch.get_num_threads(), torch.get_default_dtype())
    assert torch.equal(before[2], torch.get_rng_state())


def test_a_model_that_wants_its_own_batch_size_gets_it():
    """Small batches are for speed; where the model does not take them, its own are read."""
    changes = {"train": pr.Loader(faults.Pairs(), batch_size=20), "loss": faults.exact_loss}
    every = examination(attrs.evolve(recipe, **changes), iters=2, workers=0)

    assert [] == [finding for each in every for finding in each.findings]
