"""Data: orders, loaders, data sets and augmentations, all functions of (seed, epoch, position)."""

from __future__ import annotations

from purerun.data.augment import (
    Affine,
    Augment,
    Compose,
    Erase,
    Flip,
    ImageAugment,
    Noise,
    Rotate,
    Shift,
)
from purerun.data.chance import Chance
from purerun.data.datasets import Digits
from purerun.data.flow import InexactResume, Seekable, Stateful
from purerun.data.foreign import Foreign, as_loader
from purerun.data.loader import Batches, Loader
from purerun.data.order import Infinite, Order, Reader, Seeded, Sequential, Shuffle, Weighted
from purerun.data.place import Position, share
from purerun.data.shards import Shards, Share
from purerun.data.source import Session, Source
from purerun.data.stream import Stream
from purerun.data.tensors import InMemory, Tensors

__all__ = [
    "Affine",
    "Augment",
    "Batches",
    "Chance",
    "Compose",
    "Digits",
    "Erase",
    "Flip",
    "Foreign",
    "ImageAugment",
    "InMemory",
    "InexactResume",
    "Infinite",
    "Loader",
    "Noise",
    "Order",
    "Position",
    "Reader",
    "Rotate",
    "Seeded",
    "Seekable",
    "Sequential",
    "Session",
    "Shards",
    "Share",
    "Shift",
    "Shuffle",
    "Source",
    "Stateful",
    "Stream",
    "Tensors",
    "Weighted",
    "as_loader",
    "share",
]
