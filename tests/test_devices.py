"""States, steps and devices: a state goes to where its step works."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr


def step_on(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1)).to(device)
    return pr.TrainStep(model, lambda m, b: m(b[0]).square().mean(), pr.optim.AdamW(lr=0.01))


def run(step, state, **limit):
    loader = pr.Loader(pr.data.Tensors(torch.randn(20, 4, generator=torch.Generator().manual_seed(1))), batch_size=8)
    return list(pr.TrainLoop(step, **limit)(state, loader))


def test_a_state_in_its_place_is_left_alone():
    """On one device nothing is moved."""
    step = step_on("cpu")
    state = step.init(seed=0)

    assert {leaf.device.type for _, leaf in pr.state.leaves(state)} == {"cpu"}
    assert run(step, state, iters=1)[0]["params"]["0.weight"].device.type == "cpu"


@pytest.mark.cuda
def test_a_run_resumes_from_the_cpu_on_an_accelerator(tmp_path):
    """Loading gives tensors of the CPU; the loop puts them where the step works, and goes on bit for bit."""
    step = step_on("cuda")
    whole = run(step, step.init(seed=0), epochs=3)
    pr.save(whole[3], tmp_path / "a")

    rest = run(step, pr.load(tmp_path / "a"), epochs=3)

    assert [pr.digest(state) for state in whole[4:]] == [pr.digest(state) for state in rest]
    assert rest[-1]["iter"].device.type == "cpu"
