"""The text of a program: the same everywhere, different for different programs, and explained when it differs."""

from __future__ import annotations

import functools
import subprocess
import sys

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun import program

SETUP = """
import torch, purerun as pr
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
def loss(model, batch): return model(batch).mean()
step = pr.wrap(pr.TrainStep(net, loss, pr.optim.SGD(lr=0.1), schedule=[pr.schedule.MultiStep([1, 2])]), pr.EMA(0.9))
"""


def loss(model, batch):
    return model(batch).mean()


def step(**changes):
    """Make a small step."""
    given = {"model": nn.Linear(2, 1), "loss": loss, "optimizer": pr.optim.SGD(lr=0.1), **changes}
    return pr.TrainStep(**given)


@attrs.frozen
class Config:
    """A configuration value of a user."""

    rate: float
    inner: object = None
    _hidden: int = attrs.field(default=0, repr=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, "0.1"),
        ("a", "'a'"),
        (None, "None"),
        ((1,), "(1,)"),
        ([1, 2], "(1, 2)"),
        ({"b": 1, "a": (2,)}, "{'b': 1, 'a': (2,)}"),
        (nn.functional.relu, "relu"),
        (functools.partial(loss, batch=3), "partial(loss, batch=3)"),
        (Config(0.5, Config(1.0)), "Config(rate=0.5, inner=Config(rate=1.0, inner=None))"),
        (nn.Linear(1, 1), "Linear(in_features=1, out_features=1, bias=True)"),
        (object(), "object"),
    ],
)
def test_a_value_is_described_without_addresses(value, expected):
    """Configuration is told by names and numbers only."""
    assert expected == program.describe(value)


def test_the_fingerprint_is_the_same_in_every_process():
    """It depends neither on addresses nor on hash seeds."""
    code = SETUP + "print(bytes(step.fingerprint().tolist()).hex())"
    results = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }

    assert 1 == len(results)
    assert 65 == len(results.pop())


def test_the_weights_do_not_enter_the_fingerprint():
    """Two modules of one structure are one program."""
    assert torch.equal(step().fingerprint(), step().fingerprint())


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"model": nn.Linear(3, 1)}, id="shape"),
        pytest.param({"model": nn.Linear(2, 1, bias=False)}, id="names"),
        pytest.param({"model": nn.Linear(2, 1, dtype=torch.float64)}, id="dtype"),
        {"loss": lambda model, batch: model(batch).sum()},
        {"optimizer": pr.optim.SGD(lr=0.1, momentum=0.9)},
        {"schedule": [pr.schedule.MultiStep([3])]},
        {"engine": "func"},
        {"unused": "zero"},
        {"params": "weight"},
        {"name": "critic"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_program_has_another_fingerprint(changed):
    """Model, loss, optimizer, schedule and options are parts of the program."""
    assert not torch.equal(step().fingerprint(), step(**changed).fingerprint())


def test_wrappers_and_their_order_are_part_of_the_program():
    """A wrapper, its values and its place show in the text."""
    marks = [
        wrapped.fingerprint().tolist()
        for wrapped in (
            step(),
            pr.wrap(step(), pr.EMA(0.9)),
            pr.wrap(step(), pr.EMA(0.99)),
            pr.wrap(step(), pr.EMA(0.9), pr.Accumulate(2)),
            pr.wrap(step(), pr.Accumulate(2), pr.EMA(0.9)),
        )
    ]

    assert 5 == len({tuple(mark) for mark in marks})


def test_a_difference_names_the_lines():
    """Going on with another optimizer says which value changed."""
    old, new = step(), step(optimizer=pr.optim.SGD(lr=0.2))
    told = program.difference(old.fingerprint(), new.text())

    lines = told.splitlines()

    assert ["-", "+"] == [line[0] for line in lines]
    assert all("optimizer: SGD(" in line for line in lines)
    assert "lr=0.1" in lines[0]
    assert "lr=0.2" in lines[1]


def test_an_unknown_fingerprint_shows_the_program_at_hand():
    """A state from another process cannot say what it was made by; the text at hand is shown."""
    assert "its text is not known here" in program.difference(torch.zeros(32, dtype=torch.uint8), "a: 1")


@given(st.text(max_size=20), st.text(max_size=20))
def test_texts_have_equal_fingerprints_when_they_are_equal(a, b):
    """The fingerprint is a hash: uint8, 32 long."""
    first, second = program.fingerprint(a), program.fingerprint(b)

    assert (a == b) == torch.equal(first, second)
    assert (torch.uint8, (32,)) == (first.dtype, tuple(first.shape))
