"""Lightning: a Trainer with a checkpoint every few steps, and `ckpt_path="last"`.

- https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html (resume training state)
- https://lightning.ai/docs/pytorch/stable/common/checkpointing_intermediate.html (every_n_train_steps, save_last)
- https://lightning.ai/docs/pytorch/stable/common/trainer.html (reproducibility: seed_everything and deterministic)

In the middle of an epoch it warns that the dataloader is not resumable, and asks for one with `state_dict` and
`load_state_dict`: `stateful` gives it torchdata's, which is made for that
(https://meta-pytorch.org/data/main/torchdata.stateful_dataloader.html).
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from resuming import task
from resuming.phase import Job
from resuming.plan import BATCH, EPOCHS, EVERY, SEED, WORKERS
from resuming.tape import Tape
from torch import Tensor
from torch.utils.data import DataLoader


class Module(lightning.LightningModule):
    """The task as a module of Lightning's."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.net, self.tape = task.Net(), tape

    def training_step(self, batch: Any, _: int) -> Tensor:
        """Compute the loss, and tell the tape."""
        self.tape.begin(self.global_step, self.current_epoch, batch["index"])
        value = task.loss(self.net, batch)
        self.tape.end(value.item())
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer."""
        return task.optimizer(self.net)


def plain(job: Job) -> dict[str, Tensor]:
    """Train with torch's DataLoader."""
    return _train(job, DataLoader)


def stateful(job: Job) -> dict[str, Tensor]:
    """Train with torchdata's."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    return _train(job, StatefulDataLoader)


def _train(job: Job, loader: type[DataLoader]) -> dict[str, Tensor]:
    lightning.seed_everything(SEED, workers=True)
    module = Module(job.tape)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        deterministic=True,
        logger=False,
        enable_progress_bar=False,
        callbacks=[ModelCheckpoint(job.folder, every_n_train_steps=EVERY, save_top_k=-1, save_last=True)],
    )
    batches = loader(task.Pictures(job.samples), BATCH, shuffle=True, num_workers=WORKERS)
    trainer.fit(module, batches, ckpt_path="last" if job.resume else None)
    return module.net.state_dict()
