"""MMEngine's Runner with `resume=True`, counting iterations or epochs.

- https://mmengine.readthedocs.io/en/latest/common_usage/resume_training.html (resume=True)
- https://mmengine.readthedocs.io/en/latest/common_usage/set_interval.html (CheckpointHook: by_epoch, interval)
- https://mmengine.readthedocs.io/en/latest/common_usage/epoch_to_iter.html (InfiniteSampler)
- https://mmengine.readthedocs.io/en/latest/common_usage/set_random_seed.html (randomness)

By iterations it saves every few of them, and steps through the data up to where it was.  By epochs, its default, it
saves at the end of each, for it resumes at the beginning of one only.  Since torch 2.6 it refuses to load its own
checkpoints ("Weights only load failed", open-mmlab/mmengine#1655), unless torch's variable
TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD says otherwise; this file sets it.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from resuming import task
from resuming.phase import Job
from resuming.plan import BATCH, EPOCHS, EVERY, SEED, WORKERS, batches
from resuming.tape import Tape
from torch import Tensor

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
for name in ("matplotlib.pyplot", "torch.utils.cpp_extension"):
    import_module(name)  # a Runner imports them when it is made; that is no part of resuming


class Model(BaseModel):
    """The task as a model of MMEngine's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = task.Net()

    def forward(self, mode: str = "loss", **batch: Tensor) -> dict[str, Tensor]:
        """Compute the loss, the only thing that is asked for."""
        return {"loss": task.loss(self.net, batch)}


class Noting(Hook):
    """Tells the tape what the runner hands to `train_step`, and what comes out."""

    def __init__(self, tape: Tape, length: int | None) -> None:
        self.tape, self.length = tape, length

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Tell what goes in."""
        # Counting iterations, a runner has but one endless epoch.
        epoch = runner.iter // self.length if self.length else runner.epoch
        self.tape.begin(runner.iter, epoch, data_batch["index"])

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Tell what comes out."""
        self.tape.end(float(outputs["loss"]))


def by_iterations(job: Job) -> dict[str, Tensor]:
    """Train in iterations."""
    length = batches(job.samples)
    cfg = {"by_epoch": False, "max_iters": EPOCHS * length}
    hook = {"type": "CheckpointHook", "by_epoch": False, "interval": EVERY}
    return _train(job, cfg, hook, "InfiniteSampler", Noting(job.tape, length))


def by_epochs(job: Job) -> dict[str, Tensor]:
    """Train in epochs."""
    cfg = {"by_epoch": True, "max_epochs": EPOCHS}
    return _train(job, cfg, {"type": "CheckpointHook", "interval": 1}, "DefaultSampler", Noting(job.tape, None))


def _train(job: Job, cfg: dict[str, Any], hook: dict[str, Any], sampler: str, noting: Noting) -> dict[str, Tensor]:
    torch.manual_seed(SEED)
    model = Model()
    runner = Runner(
        model=model,
        work_dir=str(job.folder),
        train_dataloader={
            "dataset": task.Pictures(job.samples),
            "sampler": {"type": sampler, "shuffle": True},
            "collate_fn": {"type": "default_collate"},
            "batch_size": BATCH,
            "num_workers": WORKERS,
        },
        train_cfg=cfg,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": task.LR, "momentum": task.MOMENTUM}},
        default_hooks={"checkpoint": hook},
        custom_hooks=[noting],
        randomness={"seed": SEED, "deterministic": True},
        resume=job.resume,
    )
    runner.train()
    return model.net.state_dict()
