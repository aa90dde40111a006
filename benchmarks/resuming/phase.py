"""One process of a run: a contestant that begins or goes on, until it ends, stops or is killed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
import torch._dynamo  # torch's optimizers import it when first used; that is no part of anybody's resuming
from resuming.asked import Asked
from resuming.tape import Stopped, Tape
from safetensors.torch import save_file
from torch import Tensor

_COLOUR = re.compile("\x1b\\[[0-9;]*m")


@attrs.frozen
class Job:
    """What a contestant is asked for.

    Attributes:
        folder: for its checkpoints, and nothing else.
        resume: go on from what is there.
        samples: of an epoch.
        tape: for the training step to tell which samples it was given.
    """

    folder: Path
    resume: bool
    samples: int
    tape: Tape


Train = Callable[[Job], dict[str, Tensor]]
"""Train as asked, and say the weights and buffers in the end."""


def main(asked: Asked) -> None:
    """Be one process.  The clock starts when everything is imported."""
    torch.set_num_threads(1)
    train = imported(asked.train)
    tape = Tape(asked.tape, stop=asked.stop, doomed=asked.doomed)
    try:
        weights = train(Job(asked.run, asked.number > 0, asked.samples, tape))
    except Stopped:
        return
    except Exception as error:
        first = _COLOUR.sub("", str(error)).strip().partition("\n")[0].strip()
        asked.error.write_text(f"{type(error).__name__}: {first}")
        raise
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, asked.weights)


def imported(train: str) -> Train:
    """Import a contestant, with the runner that it uses."""
    module, function = train.split(":")
    return getattr(importlib.import_module(f"resuming.contestants.{module}"), function)
