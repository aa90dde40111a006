"""A small recipe file, and two ways to run a command: in this process, and as a user does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from purerun.cli import run

ROOT = Path(__file__).parent.parent.parent

RECIPE = '''\
"""A net with batch norm and dropout, on data made here."""

import time

import torch
from torch import nn

import purerun as pr


class Net(nn.Module):
    def __init__(self, width: int = 4, dropout: float = 0.5) -> None:
        super().__init__()
        layers = nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, 2)
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def loss(model, batch, wait: float = 0.0):
    time.sleep(wait)  # long enough to be interrupted
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


data = pr.data.Tensors(x=torch.linspace(-1, 1, 60).view(20, 3), y=torch.arange(20) % 2)

recipe = pr.Recipe(
    model=pr.Module(Net, width=4),
    loss=loss,
    train=pr.Loader(data, batch_size=8, shuffle=True),
    val=pr.Loader(data, batch_size=20),
    test=pr.Loader(data, batch_size=20),
    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9),
    schedule=[pr.schedule.Linear(0.5, end=3, by="iter"), pr.schedule.Step(1, gamma=0.5)],
    metrics={"accuracy": pr.metrics.Accuracy()},
    epochs=2,
    log="2 iters",
    device="cpu",
)
'''


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Write the recipe into a folder of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield write("tiny.py", RECIPE)
    sys.modules.pop("recipe_tiny", None)


def write(name, text):
    """Write a file into the current folder."""
    file = Path(name)
    file.write_text(text)
    return str(file)


@pytest.fixture
def command(recipe, capsys):
    """Run a command in this process: its exit code, and the two texts that it wrote."""

    def ran(*words):
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return ran


@pytest.fixture
def start(recipe):
    """Start a command as a process of a group of its own."""
    started = []

    def begun(*words, **options):
        process = subprocess.Popen(
            [sys.executable, "-m", "purerun", *map(str, words)],
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        started.append(process)
        return process

    yield begun
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in filter(None, (process.stdout, process.stderr)):
            stream.close()
