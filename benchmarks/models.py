"""The four models of the benchmarks: each as a module, its batches and its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


class Task(NamedTuple):
    """Something to train."""

    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    iters: int
    """Iterations of one timed round."""


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of a batch; positions of a sequence count as samples."""
    output = model(batch[0])
    return F.cross_entropy(output.flatten(0, -2), batch[1].flatten())


def small_mlp() -> nn.Module:
    """Eight layers of width 32: nothing but overhead."""
    layers = [layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and max pooling (LeCun et al., 1998)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """Four pre-norm layers of width 128 over sequences of 32 tokens."""

    def __init__(self, width: int = 128, layers: int = 4, tokens: int = 256, length: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token indices [n, length] to logits [n, length, tokens]."""
        x = self.embed(tokens) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def wide_mlp() -> nn.Module:
    """Fifteen million parameters and little arithmetic: the optimizer's memory traffic dominates."""
    return nn.Sequential(
        nn.Linear(256, 2700), nn.ReLU(), nn.Linear(2700, 2700), nn.ReLU(), nn.Linear(2700, 2560), nn.ReLU(),
        nn.Linear(2560, 10),
    )  # fmt: skip


TASKS = {
    "mlp 8x32": Task(small_mlp, lambda: (torch.randn(16, 32), torch.randint(32, (16,))), 100),
    "lenet b128": Task(lenet, lambda: (torch.randn(128, 1, 28, 28), torch.randint(10, (128,))), 4),
    "transformer 4L": Task(Transformer, lambda: (torch.randint(256, (8, 32)), torch.randint(256, (8, 32))), 4),
    "mlp 15M": Task(wide_mlp, lambda: (torch.randn(8, 256), torch.randint(10, (8,))), 3),
}
