"""Training equals the plain PyTorch loop, bit for bit: losses, weights, buffers and optimizer slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import purerun as pr
from purerun.random import Key, keyed
from purerun.testing import MODELS

STEPS, SEED = 60, 5


class Convolutional(nn.Module):
    """A small network of images, with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten()
        )
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def images(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Make data that the model takes."""
    generator = torch.Generator().manual_seed(3)
    shape = (40, 2, 8, 8) if isinstance(model, Convolutional) else (40, 6)
    return torch.randn(shape, generator=generator), torch.randint(3, (40,), generator=generator)


def made(make: Callable[[], nn.Module], layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """Make a module with the same weights every time."""
    with keyed(Key.of(SEED, "weights")):
        model = make()
    return model.to(memory_format=layout)


def batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the batches of the shuffled epochs one after the other, as purerun's order says."""
    epoch = 0
    while True:
        order = torch.as_tensor(pr.data.Shuffle().reader(SEED, epoch, len(x))(0, len(x)))
        yield from ((x[part], y[part]) for part in order.split(8))
        epoch += 1


@attrs.frozen
class Plain:
    """What a plain loop has at its end."""

    losses: list[float]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    rates: list[float]


def plain_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    given: Iterator[Any],
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> Plain:
    """Train as everybody does; only dropout is seeded as purerun keys it."""
    losses, rates = [], []
    model.train()
    for iteration in range(STEPS):
        batch = next(given)
        with keyed(Key.of(SEED, "step", iteration)):
            optimizer.zero_grad()
            total = loss(model, batch)
            total.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(total.item())
    return Plain(losses, model, optimizer, rates)


def pure(
    model: nn.Module, optimizer: Any, schedule: Any = (), *, lease: bool = False
) -> tuple[list[float], pr.State, list[float]]:
    """Train with purerun."""
    step = pr.TrainStep(model, loss, optimizer, schedule=schedule)
    loader = pr.Loader(pr.data.Tensors(*images(model)), batch_size=8, shuffle=True)
    losses, rates, start = [], [], step.init(SEED)
    state = start
    for state in pr.TrainLoop(step, iters=STEPS, lease=lease)(start, loader):
        losses.append(float(state["metrics", "loss"]))
        rates.append(float(state["metrics", "lr"]))
    return losses, state, rates


OPTIMIZERS = {
    "sgd, default": (
        pr.optim.SGD(lr=0.1, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-3),
    ),
    # torch's fused kernel and its loop round the momentum differently; each form has its equal here.
    "sgd, momentum, default": (
        pr.optim.Torch(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    ),
    "sgd, momentum, fused": (
        pr.optim.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True),
    ),
    "sgd, nesterov, fused": (
        pr.optim.SGD(lr=0.05, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    ),
    "adam, fused": (pr.optim.Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01, fused=True)),
    "adamw, fused": (
        pr.optim.AdamW(lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    ),
    "any of torch": (
        pr.optim.Torch(torch.optim.NAdam, lr=0.01),
        lambda p: torch.optim.NAdam(p, lr=0.01),
    ),
}


@pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_sixty_steps_are_those_of_the_plain_loop(ours, theirs, lease):
    """A convolutional network with batch norm and dropout: every loss, weight and buffer."""
    reference = made(Convolutional)
    plain = plain_loop(reference, theirs(reference.parameters()), batches(*images(reference)))
    losses, state, _ = pure(made(Convolutional), ours, lease=lease)

    assert plain.losses == losses
    assert plain.losses[-1] < plain.losses[0]
    assert all(torch.equal(param, state["params", name]) for name, param in reference.named_parameters())
    assert all(torch.equal(buffer, state["buffers", name]) for name, buffer in reference.named_buffers())


def test_the_slots_are_those_of_the_plain_optimizer():
    """AdamW's averages, under the same names."""
    reference = made(Convolutional)
    theirs = torch.optim.AdamW(reference.parameters(), lr=0.01, fused=True)
    plain_loop(reference, theirs, batches(*images(reference)))
    _, state, _ = pure(made(Convolutional), pr.optim.AdamW(lr=0.01))

    for name, param in reference.named_parameters():
        for slot in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(theirs.state[param][slot], state["optim", slot, name]), (slot, name)


@pytest.mark.parametrize("case", [case for case in MODELS if case.inputs == "vectors"], ids=lambda case: case.name)
def test_every_model_of_the_table_trains_as_in_the_plain_loop(case):
    """Tied, frozen, normalised, recurrent, noisy, recomputing and buffer-rebinding models."""
    reference = made(case.make)
    moved = [param for param in reference.parameters() if param.requires_grad]
    plain = plain_loop(
        reference, torch.optim.SGD(moved, lr=0.05, momentum=0.9, fused=True), batches(*images(reference))
    )
    losses, state, _ = pure(made(case.make), pr.optim.SGD(lr=0.05, momentum=0.9), lease=True)

    assert plain.losses == losses
    assert all(torch.equal(param, state["params", name]) for name, param in reference.named_parameters())
    assert all(torch.equal(buffer, state["buffers", name]) for name, buffer in reference.named_buffers())


def test_a_channels_last_model_trains_as_in_the_plain_loop():
    """The layout of the weights is kept, so the same kernels run."""
    reference = made(Convolutional, torch.channels_last)
    plain = plain_loop(reference, torch.optim.SGD(reference.parameters(), lr=0.1), batches(*images(reference)))
    losses, state, _ = pure(made(Convolutional, torch.channels_last), pr.optim.SGD(lr=0.1))

    assert plain.losses == losses
    assert all(torch.equal(param, state["params", name]) for name, param in reference.named_parameters())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            [pr.schedule.MultiStep([20, 40], gamma=0.3, by="iter")],
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 40], gamma=0.3),
        ),
        (
            [pr.schedule.Linear(0.1, end=10, by="iter")],
            lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=9),
        ),
        (
            [pr.schedule.Exponential(0.97, by="iter")],
            lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.97),
        ),
    ],
    ids=["multi-step", "linear warm-up", "exponential"],
)
def test_schedules_go_with_it(ours, theirs):
    """The rates agree to the last digits that the recursive form of torch has, and so do the weights."""
    reference = made(Convolutional)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    plain = plain_loop(reference, optimizer, batches(*images(reference)), theirs(optimizer))
    losses, state, rates = pure(made(Convolutional), pr.optim.SGD(lr=0.1), ours)

    assert plain.rates == pytest.approx(rates, rel=1e-12)
    assert plain.losses == pytest.approx(losses, rel=1e-4)
    assert all(torch.allclose(param, state["params", name], atol=1e-5) for name, param in reference.named_parameters())
