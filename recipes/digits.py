"""Handwritten digits: a small convolutional network, in well under a minute on two CPU cores.

purerun train recipes/digits.py
purerun test recipes/digits.py
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import purerun as pr


class DigitsNet(nn.Module):
    """Two pairs of convolutions for images of 8 x 8 pixels, each pair halving the side.

    Shapes: B batch, C channels, H height, W width.
    """

    def __init__(self, width: int = 24, dropout: float = 0.25) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, width),
            *_block(width, width),
            nn.MaxPool2d(2),
            *_block(width, 2 * width),
            *_block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(2),
        )
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(2 * width * 2 * 2, 10)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Compute the logits of the ten digits: float [B, 10]."""
        return self.classify(self.dropout(self.features(x_BCHW).flatten(1)))


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    # BatchNorm has the shift that a bias would give.
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy against smoothed labels: a few of these images are hard for people too."""
    return nn.functional.cross_entropy(model(batch["image"]), batch["label"], label_smoothing=0.05)


recipe = pr.Recipe(
    model=pr.Module(DigitsNet, width=24, dropout=0.25),
    loss=loss,
    train=pr.Loader(
        pr.data.Digits("train"),
        batch_size=64,
        shuffle=True,
        # One pixel and ten degrees: more would push strokes out of an image of 8 x 8.
        batch_transform=pr.data.Compose([pr.data.Affine(degrees=10, scale=(0.9, 1.1)), pr.data.Shift(1)]),
    ),
    # Nothing is chosen by these scores (the last state is the result), so test images may be watched.
    val=pr.Loader(pr.data.Digits("test"), batch_size=360),
    test=pr.Loader(pr.data.Digits("test"), batch_size=360),
    optimizer=pr.optim.SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    schedule=[
        pr.schedule.Linear(0.1, end=23, by="iter"),  # an epoch of warm-up
        pr.schedule.Cosine(period=15, end=15),
    ],
    metrics={"accuracy": pr.metrics.Accuracy()},
    epochs=15,
    log="23 iters",  # an epoch has 23 iterations
    keep=3,
    seed=0,
    # A net this small gains nothing from a second thread, and with one its digest is the same on machines of all sizes.
    threads=1,
)
