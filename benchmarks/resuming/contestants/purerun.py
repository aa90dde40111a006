"""purerun, by its README: a loop that is watched, and starts at whatever state is loaded."""

from __future__ import annotations

from typing import Any

import torch
from resuming import task
from resuming.phase import Job
from resuming.plan import BATCH, EPOCHS, EVERY, SEED, WORKERS
from torch import Tensor

from purerun import Loader, State, TrainLoop, TrainStep, load, optim, sinks, watch  # names, for `pr` is lazy


def train(job: Job) -> dict[str, Tensor]:
    """Go on from the last checkpoint of the run, if it is to go on."""
    torch.manual_seed(SEED)
    train_step = TrainStep(task.Net(), task.loss, optim.SGD(lr=task.LR, momentum=task.MOMENTUM))
    loader = Loader(task.Pictures(job.samples), batch_size=BATCH, shuffle=True, workers=WORKERS)

    def noted(state: State, batch: Any) -> State:
        job.tape.begin(int(state["iter"]), int(state["epoch"]), batch["index"])
        return train_step(state, batch)

    train_loop = TrainLoop(noted, steps=[train_step], epochs=EPOCHS)
    start = load(job.folder) if job.resume else train_step.init(seed=SEED)
    checkpoints = sinks.Checkpoint(job.folder, every=f"{EVERY} iters")
    for state in watch(train_loop(start, loader), checkpoints, resume=job.folder if job.resume else None):
        job.tape.end(float(state["metrics", "loss"]))
    return {**state["params"].to_dict(), **state["buffers"].to_dict()}
