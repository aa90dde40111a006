"""What every contestant trains: pictures with a number each, augmented by chance, and a small network with dropout."""

from __future__ import annotations

import random

import numpy as np
import torch
from resuming.plan import SEED
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

LR, MOMENTUM = 0.01, 0.9
SIZE, CLASSES = 16, 10


class Pictures(Dataset):
    """Pictures that are mirrored, moved and blurred by chance: from three global generators, as users write it."""

    def __init__(self, samples: int) -> None:
        chance = torch.Generator().manual_seed(SEED)
        motifs = F.interpolate(torch.randn(CLASSES, 1, 4, 4, generator=chance), size=SIZE, mode="bilinear")
        self.labels = torch.randint(CLASSES, (samples,), generator=chance)
        self.images = motifs[self.labels] + 0.5 * torch.randn(samples, 1, SIZE, SIZE, generator=chance)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        image = self.images[index]
        if random.random() < 0.5:
            image = image.flip(2)
        top, left = torch.randint(5, (2,)).tolist()
        image = F.pad(image, (2, 2, 2, 2))[:, top : top + SIZE, left : left + SIZE]
        noise = np.random.normal(0, 0.1, image.shape).astype(np.float32)  # noqa: NPY002 - as users write it
        return {"index": index, "image": image + torch.from_numpy(noise), "label": int(self.labels[index])}


class Net(nn.Sequential):
    """Two convolutions with batch normalisation, and dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(256, CLASSES),
        )  # fmt: skip


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of a batch."""
    return F.cross_entropy(model(batch["image"]), batch["label"])


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, so that there is a state to save."""
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
