"""Ignite: a DeterministicEngine with a Checkpoint every few iterations.

- https://docs.pytorch.org/ignite/engine.html (resuming the training; deterministic training; it warns that "random
  data augmentations are not synchronized in the middle of the epoch")
- examples/mnist/mnist_save_resume_engine.py of its repository, which seeds before each run and resumes like this
"""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import DeterministicEngine, Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from ignite.utils import manual_seed
from resuming import task
from resuming.phase import Job
from resuming.plan import BATCH, EPOCHS, EVERY, SEED, WORKERS
from torch import Tensor
from torch.utils.data import DataLoader


def train(job: Job) -> dict[str, Tensor]:
    """Go on from the newest checkpoint of the folder, if it is to go on."""
    manual_seed(SEED)
    model = task.Net()
    optimizer = task.optimizer(model)

    def update(engine: Engine, batch: Any) -> float:
        # An engine counts an iteration, and an epoch, when it begins.
        job.tape.begin(engine.state.iteration - 1, engine.state.epoch - 1, batch["index"])
        model.train()
        optimizer.zero_grad()
        value = task.loss(model, batch)
        value.backward()
        optimizer.step()
        job.tape.end(value.item())
        return value.item()

    trainer = DeterministicEngine(update)
    objects = {"trainer": trainer, "model": model, "optimizer": optimizer}
    saver = DiskSaver(str(job.folder), require_empty=False)
    handler = Checkpoint(objects, saver, n_saved=None, global_step_transform=lambda engine, _: engine.state.iteration)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=EVERY), handler)
    if job.resume:
        newest = max(job.folder.glob("checkpoint_*.pt"), key=lambda path: int(path.stem.split("_")[1]))
        # As its documentation loads; since torch 2.6 that takes the argument, for the generators' states.
        checkpoint = torch.load(newest, weights_only=False)  # noqa: TID251 - a peer's own format
        Checkpoint.load_objects(to_load=objects, checkpoint=checkpoint)
    manual_seed(SEED)
    trainer.run(DataLoader(task.Pictures(job.samples), BATCH, shuffle=True, num_workers=WORKERS), max_epochs=EPOCHS)
    return model.state_dict()
