"""A recipe with five planted faults: each line marked with FAULT breaks a law.

`mended.py` is the same run without them.
"""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import nn

import purerun as pr

RNG = np.random.default_rng(0)


def points(samples: int = 48):
    """Make points in two clouds, and their labels."""
    label = torch.arange(samples) % 2
    return {"point": torch.linspace(-1, 1, 3 * samples).view(samples, 3) + label[:, None], "label": label}


class Points:
    """The points one by one; only from the first one on."""

    def __iter__(self):  # FAULT: unseekable loader
        data = points()
        for point, label in zip(data["point"], data["label"], strict=True):
            yield {"point": point, "label": label}


def noisy(batch, chance):
    """Move each point a little."""
    noise = RNG.normal(size=batch["point"].shape)  # FAULT: global generator in an augmentation
    return {**batch, "point": batch["point"] + 0.1 * torch.from_numpy(noise).float()}


class Net(nn.Module):
    """A small net whose scores grow in the beginning."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 2))
        self.calls = 0

    def forward(self, point):
        """Score the two clouds: [n, 2]."""
        self.calls += 1  # FAULT: Python counter in a module
        return self.layers(point) / (1 + 1 / self.calls)


def loss(model, batch):
    """Cross-entropy."""
    return nn.functional.cross_entropy(model(batch["point"]), batch["label"])


@attrs.frozen
class Cool(pr.hooks.Hook):
    """Halves the learning rate at each third call."""

    times: list[int] = attrs.field(factory=list)
    writes = ("hyper",)

    def __call__(self, state):
        """Make the state with the rate of now."""
        self.times.append(int(state["iter"]))  # FAULT: hook with hidden memory
        return state.replace(hyper={"lr": 0.1 * 0.5 ** (len(self.times) // 3)})


@attrs.frozen
class Share(pr.metrics.Metric):
    """The share of points that are told right."""

    def init(self, device="cpu"):
        """Make the tally of no batch."""
        return {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("right", "all")}

    def update(self, tally, output, batch):
        """Count a batch."""
        right = (output.argmax(1) == batch["label"]).sum()
        return {"right": tally["right"] + right, "all": tally["all"] + len(output)}

    def merge(self, a, b):
        """Join two tallies."""
        return b  # FAULT: metric not merged

    def compute(self, tally):
        """Divide."""
        return tally["right"] / tally["all"]


recipe = pr.Recipe(
    model=pr.Module(Net, width=8),
    loss=loss,
    train=pr.data.Stream(Points(), batch_size=8, batch_transform=noisy),
    val=pr.Loader(pr.data.Tensors(**points()), batch_size=16),
    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9),
    metrics={"share": Share()},
    hooks=[Cool(every="1 iter")],
    epochs=3,
    device="cpu",
    threads=1,
)
