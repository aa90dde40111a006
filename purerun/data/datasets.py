"""Data sets that come with the software: small, real, and without a download."""

from __future__ import annotations

from functools import cache
from typing import Literal

import attrs
import torch
from torch import Tensor

from purerun.data.tensors import InMemory, Tensors
from purerun.random import Key, bits

_TEST_SHARE = 0.2


@attrs.frozen
class Digits(InMemory):
    """Handwritten digits, as scikit-learn bundles them: 1797 images of 8 x 8 pixels.

    A sample is `{"image": float32 [1, 8, 8] in [0, 1], "label": int64}`.  A fifth of each digit's
    images is the test set; which ones is fixed.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI Machine
    Learning Repository, 1998 (its test part).

    >>> digits = Digits("test")
    >>> digits, len(digits)
    (Digits(split='test'), 359)
    """

    split: Literal["train", "test"] = attrs.field(default="train", validator=attrs.validators.in_(("train", "test")))

    def tensors(self) -> Tensors:
        """Give all samples at once.

        Raises:
            ImportError: scikit-learn is not installed.
        """
        return _digits()[self.split]


@cache
def _digits() -> dict[str, Tensors]:
    from sklearn.datasets import load_digits

    image, label = load_digits(return_X_y=True)
    images = torch.from_numpy(image).to(torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(label).to(torch.int64)
    test = _chosen(labels)
    parts = {"train": ~test, "test": test}
    return {split: Tensors(image=images[part], label=labels[part]) for split, part in parts.items()}


def _chosen(labels: Tensor) -> Tensor:
    """Mark a fixed fifth of each class: bool, shape [n]."""
    # Sorting hashes, not torch.randperm: the split must outlive any release of torch.
    hashes = bits(Key.of(0, "digits", "split"), torch.arange(len(labels), device="cpu"), 1).squeeze(1)
    test = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for label in labels.unique():
        members = torch.nonzero(labels == label).squeeze(1)
        shuffled = members[hashes[members].argsort()]
        test[shuffled[: round(_TEST_SHARE * len(members))]] = True
    return test
