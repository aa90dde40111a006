"""`purerun train` in several processes: one writes, all end together, and the run is that of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import purerun as pr
from tests.faults.runs import Run
from tests.wrappers import shared_runs
from tests.wrappers.team import Team

ROOT = Path(__file__).parent.parent.parent

RECIPE = '''\
"""A net with batch norm and dropout; data that can break, and a loss that can be told to stop."""

import os
import signal

import torch
from torch import nn

import purerun as pr


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)


class Rows:
    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def __len__(self):
        return 72

    def __getitem__(self, index):
        if self.broken and pr.processes.rank() == 1:
            raise ZeroDivisionError(f"sample {index} is broken")
        chance = torch.Generator().manual_seed(index)
        x = torch.randn(4, generator=chance) + 0.1 * torch.randn(4)
        return {"x": x, "y": torch.randint(3, (), generator=chance)}


calls = [0]


def loss(model, batch, stop: int = 0):
    calls[0] += 1
    if calls[0] == stop and pr.processes.rank() == pr.processes.count() - 1:
        signal.raise_signal(signal.SIGTERM)
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


recipe = pr.Recipe(
    model=pr.Module(Net),
    loss=loss,
    train=pr.Loader(Rows(), batch_size=16, shuffle=True, workers=WORKERS),
    val=pr.Loader(Rows(), batch_size=30),
    metrics={"accuracy": pr.metrics.Accuracy()},
    optimizer=pr.optim.AdamW(lr=0.01),
    wrappers=[pr.DataParallel(shards=4), pr.Accumulate(2), pr.EMA(0.9)],
    epochs=3,
    checkpoint="4 iters",
    log="1 iter",
    threads=1,
    device="cpu",
)
'''


def write(folder: Path, *, workers: int = 0, **changes: str) -> str:
    """Write a recipe file; a change replaces one text by another."""
    text = RECIPE.replace("WORKERS", str(workers))
    for old, new in changes.items():
        text = text.replace(f"{old}", new)
    path = folder / "net.py"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that one process makes without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    team = Team(1)
    answers = team(shared_runs.command, "train", write(folder), "--work-dir", str(folder / "run"))
    team.close()

    assert [0] == [code for code, _ in answers]
    return folder / "run"


def last(directory: Path) -> str:
    """Hash the last state of a run."""
    return pr.digest(pr.load(directory))


def test_torchrun_makes_the_run_of_one_process(whole, tmp_path):
    """The same log and digest, one line on stdout; with workers too."""
    words = ["train", write(tmp_path, workers=1), "--work-dir", str(tmp_path / "run")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port()}"]
    done = subprocess.run(
        [*launcher, "-m", "purerun", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )

    assert 0 == done.returncode, done.stderr
    assert last(whole) == json.loads(done.stdout)["digest"] == last(tmp_path / "run")
    assert Run(whole).log == Run(tmp_path / "run").log
    assert 1 == done.stderr.count("finished at")


def test_a_stopped_run_goes_on_in_another_number_of_processes(whole, tmp_path):
    """A signal in the last process stops all after the same iteration; 2 -> 4 -> 1, and nothing shows."""
    for count, stop in ((2, 6), (4, 6), (1, 0)):
        team = Team(count)
        recipe = write(tmp_path, **{"stop: int = 0": f"stop: int = {stop}"})
        answers = team(shared_runs.command, "train", recipe, "--work-dir", str(tmp_path / "run"), "--resume", "last")
        team.close()

        assert [143 if stop else 0] * count == [code for code, _ in answers]
        assert 0 == sum(len(printed) for _, printed in answers[1:])

    assert last(whole) == last(tmp_path / "run")
    assert Run(whole).log == Run(tmp_path / "run").log


def test_an_error_in_one_process_ends_all(tmp_path):
    """With exit codes that say so."""
    recipe = write(tmp_path, **{"broken: bool = False": "broken: bool = True"})
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "purerun", "train", recipe, "--work-dir", str(tmp_path / "run")],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=60)[1] for process in running]

    assert [1, 1] == [process.returncode for process in running]
    assert "purerun: expected 2 processes that answer each other" in told[0]
    assert "is broken" in told[1]


def test_what_cannot_be_divided_is_a_mistake(tmp_path):
    """A recipe without shards, or with too few, in several processes."""
    team = Team(4)
    for shards, said in (("pr.DataParallel(shards=3), ", "[1, 2], got 4"), ("", "DataParallel(shards=4)")):
        recipe = write(tmp_path, **{"pr.DataParallel(shards=4), ": shards})
        answers = team(shared_runs.command, "train", recipe, "--work-dir", str(tmp_path / "run"))

        assert [2] * 4 == [code for code, _ in answers]
        assert all(said in printed for _, printed in answers)
    team.close()

    assert not (tmp_path / "run").exists()


def port() -> int:
    """Find a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
