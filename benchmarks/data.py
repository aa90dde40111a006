"""How many samples a second: purerun's Loader beside torch's DataLoader, on the same data, in turns in one run.

    python benchmarks/data.py

The first rows read tensors in memory: scikit-learn's digits (8 x 8, floats), then MNIST's shape (28 x 28) as the bytes
that it is stored as, and as floats, where four times as many bytes are copied and both sides wait for memory.  The last
rows read a dataset that makes each sample in Python; there purerun also puts the generators at each sample's key.
Workers live on from epoch to epoch on both sides; starting them is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import purerun as pr
from purerun.data import Digits, Tensors

BATCH = 128
ROUNDS = 7
IN_MEMORY, IN_PYTHON = 30_000, 6_000  # samples of an epoch: long enough to time, short enough for seven rounds


class Pictures(Dataset):
    """Samples made one by one in Python: bytes to floats, perhaps a random mirror and crop, normalised."""

    def __init__(self, count: int, augment: bool) -> None:
        self.images, self.augment = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        image = self.images[index].to(torch.float32) / 255
        if self.augment:
            image = image.flip(2) if torch.rand(()) < 0.5 else image
            top, left = torch.randint(9, (2,)).tolist()
            image = torch.nn.functional.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        return {"image": (image - 0.5) / 0.25, "label": index % 10}


def ours(dataset, workers: int, stack: ExitStack) -> Callable[[int], Iterable]:
    session = stack.enter_context(pr.Loader(dataset, batch_size=BATCH, shuffle=True, workers=workers).open(seed=0))
    return lambda epoch: (batch for batch, _ in session.read(epoch, 0))


def torchs(dataset, workers: int, _stack: ExitStack) -> Callable[[int], Iterable]:
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda epoch: loader


def speed(epoch: Callable[[int], Iterable], number: int, samples: int) -> float:
    begin = perf_counter()
    for _ in epoch(number):
        pass
    return samples / (perf_counter() - begin)


def compare(name: str, mine: Callable, theirs: Callable, samples: int, target: str) -> None:
    with ExitStack() as stack:
        pair = mine(stack), theirs(stack)
        for epoch in pair:
            speed(epoch, 0, samples)  # starts the workers, fills the caches
        rounds = [[speed(epoch, number, samples) for epoch in pair] for number in range(1, ROUNDS + 1)]
    fast, slow = (median(column) for column in zip(*rounds, strict=True))
    ratios = sorted(a / b for a, b in rounds)
    print(f"{name:46} {fast:12,.0f} {slow:12,.0f} {median(ratios):8.2f} {ratios[0]:6.2f}-{ratios[-1]:<6.2f} {target}")


def main() -> None:
    torch.manual_seed(0)
    digits = Digits().tensors()
    bytes_, label = torch.randint(256, (IN_MEMORY, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (IN_MEMORY,))
    floats = bytes_ / 255
    pictures, augmented = Pictures(IN_PYTHON, False), Pictures(IN_PYTHON, True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {BATCH}, {ROUNDS} rounds in turns")
    print(f"{'samples a second (median)':46} {'purerun':>12} {'DataLoader':>12} {'ratio':>8} {'range':>9}     target")
    for name, data, other, pairs in (
        ("digits in memory", digits, TensorDataset(*digits.entries.values()), ((0, 0, ">= 10"),)),
        ("bytes in memory", Tensors(bytes_, label), TensorDataset(bytes_, label), ((0, 0, ">= 10"), (2, 2, ">= 1"))),
        ("floats in memory", Tensors(floats, label), TensorDataset(floats, label), ((0, 0, ""), (2, 2, ">= 1"))),
        ("made in Python", pictures, pictures, ((0, 0, ""), (2, 2, ">= 1"))),
        ("made in Python by chance", augmented, augmented, ((0, 0, ""), (2, 2, ">= 1"))),
    ):
        for mine, theirs, target in pairs:
            title = f"{name}, {mine} workers and {theirs}"
            compare(title, partial(ours, data, mine), partial(torchs, other, theirs), len(data), target)


if __name__ == "__main__":
    main()
