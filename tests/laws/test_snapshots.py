"""What a batch looks like: equal for equal contents, whatever holds them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from purerun.testing.snapshot import changed, of_batch


@dataclass
class Boxes:
    """A batch of one's own."""

    corners: torch.Tensor
    names: Any


BATCHES = {
    "an object": Boxes(torch.ones(2, 4), ["cat", "dog"]),
    "objects in a list": [Boxes(torch.ones(1, 4), None), Boxes(torch.zeros(0, 4), None)],
    "an array of objects": np.array(["cat", None, (1, 2)], dtype=object),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_same_read_again_looks_the_same(batch):
    """It comes in other objects."""
    assert of_batch(batch) == of_batch(copy.deepcopy(batch))


def test_a_change_inside_an_object_is_named():
    """By its path."""
    boxes = Boxes(torch.ones(2, 4), ["cat", "dog"])
    before = of_batch({"boxes": boxes})
    boxes.corners[0] = 3
    boxes.names[1] = "cow"

    assert ["batch/boxes/corners", "batch/boxes/names/1"] == changed(before, of_batch({"boxes": boxes}))


def test_what_holds_itself_has_an_end():
    """A cycle is not followed for ever."""
    boxes = Boxes(torch.ones(1, 4), None)
    boxes.names = boxes

    assert of_batch(boxes) == of_batch(boxes)
