"""A small run with everything that may go wrong when it is computed again, and ways to spoil it."""

from __future__ import annotations

import json
from functools import cache

import attrs
import torch
from torch import nn

import purerun as pr
from purerun.checkpoint import path_of, read_manifest
from purerun.recipe import Recipe, override, train

CLOCKS = ("time", "data_time", "eta", "timestamp", "memory")
WEIGHT = "layers.0.weight"

# Iterations after which something reaches into the run that its recipe does not know.
RAYS: set[int] = set()


class Net(nn.Module):
    """Batch norm, dropout, two layers."""

    def __init__(self, width: int = 4, dropout: float = 0.5) -> None:
        super().__init__()
        layers = nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, 2)
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


@attrs.frozen
class Bump(pr.hooks.Hook):
    """Adds to a weight after one iteration, as its recipe says, and after those in `RAYS`, as it does not."""

    at: int = 0

    @property
    def writes(self):
        return ("params",)

    def due(self, state):
        return int(state["iter"]) in (self.at, *RAYS)

    def __call__(self, state):
        return state.replace(params={WEIGHT: state["params", WEIGHT] + 0.25})


def noise(batch, chance):
    return {**batch, "x": batch["x"] + 0.1 * chance.normal(3)}


DATA = pr.data.Tensors(x=torch.linspace(-1, 1, 60).view(20, 3), y=torch.arange(20) % 2)

RECIPE = Recipe(
    model=pr.Module(Net, width=4),
    loss=loss,
    train=pr.Loader(DATA, batch_size=8, shuffle=True, batch_transform=noise),
    val=pr.Loader(DATA, batch_size=20),
    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9),
    schedule=[pr.schedule.Linear(0.5, end=3, by="iter"), pr.schedule.Step(1, gamma=0.5)],
    wrappers=[pr.Accumulate(2), pr.EMA(0.9)],
    hooks=[Bump()],
    metrics={"accuracy": pr.metrics.Accuracy()},
    epochs=4,
    log="2 iters",
    checkpoint="5 iters",
    device="cpu",
    threads=1,
)
"""Twelve iterations, three an epoch, saved after 5, 10 and 12: in mid-epoch, and once in mid-window."""


def ran(directory, *settings, resume=None, recipe=RECIPE):
    """Train the recipe, with changes that are asked for."""
    asked = [setting.partition("=")[0] for setting in settings]
    train(override(recipe, settings), directory, resume=resume, asked=asked)
    return directory


def alter(run, iter, change=None):
    """Change one weight of a checkpoint, or what is asked for, and sign its manifest again."""
    place = path_of(run, iter)
    state, manifest = pr.load(place), read_manifest(place)
    weight = state["params", WEIGHT].clone()
    weight[1, 2] += 0.5
    pr.save(
        state.replace(change or {"params": {WEIGHT: weight}}),
        place,
        recipe=manifest.recipe,
        parent=manifest.parent,
        memory=manifest.memory,
        changes=manifest.changes,
    )


def lines(directory):
    """Read a log without what clocks say."""
    read = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read]


@cache
def digests():
    """List the digests of the run by iteration, computed without anything of the history's."""
    module = RECIPE.module()
    states = RECIPE.train_loop(module)(RECIPE.init(module), RECIPE.train)
    return {int(state["iter"]): pr.digest(state) for state in states}
