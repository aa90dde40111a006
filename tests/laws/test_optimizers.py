"""Every law on every optimizer.  Adding an optimizer is adding a row to `purerun.testing.optimizers`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.testing import Case, check_everything
from purerun.testing.optimizers import OPTIMIZERS


class _Sparse(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 3, sparse=True)

    def forward(self, x):
        return self.embed(x).mean(1)


def _matrices():
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))


def _mixed():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.PReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def case_for(row) -> Case:
    """Choose a model with parameters that the optimizer can move."""
    if row.sparse:
        return Case("sparse", _Sparse, inputs="words")
    return Case("matrices", _matrices) if set(map(len, row.shapes.values())) == {2} else Case("mixed", _mixed)


@pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_law_holds_on_every_optimizer(make_run, row):
    """Slots at full shape from `init` on, first-step rules across a resume, no write into anything given."""
    run = make_run(case_for(row), row.optimizer, iters=4)

    check_everything(run.loop, run.state, run.loader, again=run.again)


@pytest.mark.parametrize("row", [row for row in OPTIMIZERS.values() if row.traced], ids=lambda row: repr(row.optimizer))
def test_every_law_holds_on_every_traced_optimizer(make_run, row):
    """The forms that can be differentiated make new tensors, and no tensor twice."""
    run = make_run(case_for(row), row.optimizer, iters=4, step={"engine": "func"})

    check_everything(run.loop, run.state, run.loader, again=run.again)


@pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_slot_is_there_from_the_start(row):
    """What `init` makes has the names, shapes and dtypes of what an update makes."""
    case = case_for(row)
    step = pr.TrainStep(case.module(), case.loss, row.optimizer)
    first, second = step.init(0), step(step.init(0), case.data())

    assert [(d.path, d.what) for d in pr.diff(first, second) if "against" in d.what or "only" in d.what] == []
    assert torch.equal(first["fingerprint"], second["fingerprint"])
