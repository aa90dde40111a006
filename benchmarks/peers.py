"""Today's runners on the tasks of `overhead.py`, used as their documentation says, with logging and progress on.

Only those that are installed take part (`pip install purerun[bench]`).  Each round is a run of its own;
its time is taken between the start of an early iteration and that of the last, so that setting up is free.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from models import Task, loss
from torch.utils.data import DataLoader, Dataset

WARM = 10
BATCHES = 10


def setup(task: Task, optimizer: str) -> tuple[torch.nn.Module, list[Any], torch.optim.Optimizer]:
    """Make the model, the batches and torch's default optimizer."""
    torch.manual_seed(0)
    model, batches = task.model(), [task.batch() for _ in range(BATCHES)]
    params = model.parameters()
    if optimizer == "sgd":
        return model, batches, torch.optim.SGD(params, lr=1e-3, momentum=0.9)
    return model, batches, torch.optim.AdamW(params, lr=1e-4)


class Clock:
    """Notes when each iteration begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        """Note that an iteration begins."""
        self.times.append(time.perf_counter())

    def each(self) -> float:
        """Tell the seconds an iteration of this round, and begin anew."""
        times, self.times = self.times[WARM:], []
        return (times[-1] - times[0]) / (len(times) - 1)


class Repeated(Dataset[Any]):
    """A few batches, over and over, as a dataset of ready batches."""

    def __init__(self, batches: list[Any], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.batches[index % len(self.batches)]


def fabric(task: Task, optimizer: str) -> Callable[[], float]:
    """Lightning Fabric: a hand-written loop with its backward."""
    from lightning.fabric import Fabric

    model, batches, opt = setup(task, optimizer)
    runner = Fabric(accelerator="cpu", devices=1)
    wrapped, opt = runner.setup(model, opt)
    source = itertools.cycle(batches)
    clock = Clock()

    def once() -> float:
        for batch in itertools.islice(source, task.iters + WARM + 1):
            clock.tick()
            opt.zero_grad()
            value = loss(wrapped, batch)
            runner.backward(value)
            opt.step()
        return clock.each()

    return once


def accelerate(task: Task, optimizer: str) -> Callable[[], float]:
    """Accelerate: a hand-written loop with its backward and its loader."""
    from accelerate import Accelerator

    model, batches, opt = setup(task, optimizer)
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(Repeated(batches, task.iters + WARM + 1), batch_size=None)
    wrapped, opt, loader = accelerator.prepare(model, opt, loader)
    clock = Clock()

    def once() -> float:
        for batch in loader:
            clock.tick()
            opt.zero_grad()
            value = loss(wrapped, batch)
            accelerator.backward(value)
            opt.step()
        return clock.each()

    return once


def ignite(task: Task, optimizer: str) -> Callable[[], float]:
    """Ignite: an Engine with a running mean of the loss and a log line now and then."""
    from ignite.engine import Engine, Events
    from ignite.metrics import RunningAverage

    model, batches, opt = setup(task, optimizer)
    clock = Clock()
    lines: list[str] = []

    def update(_: Engine, batch: Any) -> float:
        clock.tick()
        opt.zero_grad()
        value = loss(model, batch)
        value.backward()
        opt.step()
        return value.item()

    engine = Engine(update)
    RunningAverage(output_transform=lambda value: value).attach(engine, "loss")
    engine.add_event_handler(
        Events.ITERATION_COMPLETED(every=50), lambda each: lines.append(f"{each.state.iteration} {each.state.metrics}")
    )

    def once() -> float:
        engine.run(itertools.cycle(batches), max_epochs=1, epoch_length=task.iters + WARM + 1)
        return clock.each()

    return once


def lightning(task: Task, optimizer: str) -> Callable[[], float]:
    """Lightning's Trainer with its progress bar and a CSV logger."""
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    model, batches, opt = setup(task, optimizer)
    clock = Clock()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            value = loss(self.model, batch)
            self.log("loss", value, prog_bar=True)
            return value

        def on_train_batch_start(self, *_: Any) -> None:
            clock.tick()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return opt

    module = Module()
    folder = tempfile.mkdtemp()

    def once() -> float:
        steps = task.iters + WARM + 1
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            logger=CSVLogger(folder),
            log_every_n_steps=50,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(Repeated(batches, steps), batch_size=None))
        return clock.each()

    return once


def mmengine(task: Task, optimizer: str) -> Callable[[], float]:
    """MMEngine's Runner with its default hooks but the checkpoint."""
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    model, batches, opt = setup(task, optimizer)
    clock = Clock()

    class Module(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Any, targets: Any, mode: str = "loss") -> dict[str, torch.Tensor]:
            return {"loss": loss(self.model, (inputs, targets))}

        def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
            with optim_wrapper.optim_context(self):
                losses = self(*data)
            parsed, log_vars = self.parse_losses(losses)
            optim_wrapper.update_params(parsed)
            return log_vars

    class Ticking(Hook):
        def before_train_iter(self, *_: Any, **__: Any) -> None:
            clock.tick()

    module = Module()
    folder = tempfile.mkdtemp()

    def once() -> float:
        steps = task.iters + WARM + 1
        runner = Runner(
            model=module,
            work_dir=folder,
            train_dataloader=DataLoader(Repeated(batches, steps), batch_size=None),
            train_cfg={"by_epoch": False, "max_iters": steps},
            optim_wrapper={"optimizer": opt},
            default_hooks={"checkpoint": None, "sampler_seed": None, "logger": {"type": "LoggerHook", "interval": 50}},
            custom_hooks=[Ticking()],
            experiment_name=f"bench{time.time_ns()}",
            log_level="ERROR",
        )
        runner.train()
        return clock.each()

    return once


def _installed() -> dict[str, Callable[[Task, str], Callable[[], float]]]:
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    known = {
        "Fabric": ("lightning", fabric),
        "Accelerate": ("accelerate", accelerate),
        "Ignite": ("ignite", ignite),
        "Lightning": ("lightning", lightning),
        "MMEngine": ("mmengine", mmengine),
    }
    return {name: make for name, (module, make) in known.items() if importlib.util.find_spec(module)}


PEERS = _installed()
