"""Accelerate: a hand-written loop with `save_state`, `load_state` and `skip_first_batches`.

- https://huggingface.co/docs/accelerate/usage_guides/checkpoint (restoring the state of the DataLoader)
- examples/by_feature/checkpointing.py of its repository, whose loop this is
- https://huggingface.co/docs/accelerate/package_reference/utilities (DataLoaderConfiguration: use_seedable_sampler
  with set_seed "ensures training results are fully reproducible"; use_stateful_dataloader)

`set_epoch` is in none of these pages, but without it a resumed epoch has another order; it is what transformers'
Trainer calls, and what `skip_first_batches` was mended for (huggingface/accelerate#4071).
"""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from resuming import task
from resuming.phase import Job
from resuming.plan import BATCH, EPOCHS, EVERY, SEED, WORKERS
from torch import Tensor
from torch.utils.data import DataLoader


def skipping(job: Job) -> dict[str, Tensor]:
    """Skip the first batches of the epoch."""
    return _train(job, DataLoaderConfiguration(use_seedable_sampler=True))


def stateful(job: Job) -> dict[str, Tensor]:
    """Let torchdata's StatefulDataLoader find its place."""
    return _train(job, DataLoaderConfiguration(use_seedable_sampler=True, use_stateful_dataloader=True))


def _train(job: Job, config: DataLoaderConfiguration) -> dict[str, Tensor]:
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    set_seed(SEED, deterministic=True)
    model = task.Net()
    loader = DataLoader(task.Pictures(job.samples), BATCH, shuffle=True, num_workers=WORKERS)
    model, optimizer, loader = accelerator.prepare(model, task.optimizer(model), loader)
    first, skip = divmod(_load(accelerator, job.folder), len(loader)) if job.resume else (0, 0)
    step = first * len(loader) + skip
    model.train()
    for epoch in range(first, EPOCHS):
        loader.set_epoch(epoch)
        by_hand = epoch == first and skip and not config.use_stateful_dataloader
        for batch in accelerator.skip_first_batches(loader, skip) if by_hand else loader:
            job.tape.begin(step, epoch, batch["index"])
            optimizer.zero_grad()
            value = task.loss(model, batch)
            accelerator.backward(value)
            optimizer.step()
            job.tape.end(value.item())
            step += 1
            if step % EVERY == 0:
                accelerator.save_state(job.folder / f"step_{step}")
    return accelerator.unwrap_model(model).state_dict()


def _load(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint, and read from its name how many steps are done."""
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_ctime_ns)
    accelerator.load_state(newest)
    return int(newest.name.removeprefix("step_"))
