"""Keyed augmentation of whole batches: right geometry, right distribution, and no word with the neighbours."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad

from purerun.batch import BatchError
from purerun.data import Affine, Chance, Compose, Erase, Flip, Noise, Rotate, Shift
from purerun.random import Key

AUGMENTS = [
    Shift(2),
    Rotate(30),
    Affine(20, 0.2, (0.8, 1.2), 10),
    Affine(10, padding="border"),
    Noise(0.3),
    Flip(),
    Flip(axis="vertical"),
    Erase(),
    Compose([Shift(1), Noise(0.1), Rotate(5), Erase(1.0)]),
]


def chance(count=8, start=0, epoch=0):
    return Chance(Key.of(0, "sample", epoch), torch.arange(start, start + count))


class Certain(Chance):
    """Chance that always draws the same numbers."""

    numbers = (0.0,)

    def uniform(self, count, name=""):
        return torch.tensor([self.numbers[:count]] * len(self.positions))


def certain(*numbers, count=1):
    return type("Certain", (Certain,), {"numbers": numbers})(Key(0), torch.arange(count))


@pytest.mark.parametrize("augment", AUGMENTS, ids=repr)
@given(st.permutations(range(13)), st.integers(1, 13))
def test_a_sample_s_fate_does_not_depend_on_its_batch(augment, order, count):
    """Cut, reordered or alone: each sample comes out with the same bits."""
    image = torch.rand(13, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    whole = augment({"image": image}, chance(13))["image"]
    chosen = torch.tensor(order[:count])
    part = augment({"image": image[chosen]}, Chance(chance().key, chosen))["image"]

    assert torch.equal(whole[chosen], part)


@pytest.mark.parametrize("augment", AUGMENTS, ids=repr)
def test_an_augmentation_is_a_function(augment):
    """Same chance, same images; other epochs differ; shape, dtype, the input and the other entries stay."""
    image = torch.rand(8, 1, 8, 8)
    kept = image.clone()
    batch = {"image": image, "label": torch.arange(8)}
    one, again, other = (augment(batch, chance(epoch=epoch)) for epoch in (0, 0, 1))

    assert torch.equal(one["image"], again["image"])
    assert not torch.equal(one["image"], other["image"])
    assert (image.shape, image.dtype) == (one["image"].shape, one["image"].dtype)
    assert torch.equal(kept, image)
    assert batch["label"] is one["label"]


def test_shift_is_a_padded_crop():
    """Every image is a window of the padded one, and every window comes."""
    image = torch.rand(400, 2, 4, 5) + 1
    padded = pad(image, (1, 1, 1, 1))
    shifted = Shift(1)({"image": image}, chance(400))["image"]
    windows = torch.stack([padded[:, :, top : top + 4, left : left + 5] for top in range(3) for left in range(3)])
    found = (windows == shifted).flatten(2).all(2)

    assert torch.equal(torch.ones(400, dtype=torch.int64), found.sum(0))
    assert bool((found.sum(1) > 20).all())


@pytest.mark.parametrize(
    ("augment", "numbers", "expected"),
    [
        (Rotate(90), (1.0, 0, 0, 0, 0), lambda image: torch.rot90(image, 1, (3, 2))),
        (Rotate(90), (0.0, 0, 0, 0, 0), lambda image: torch.rot90(image, -1, (3, 2))),
        (Rotate(180), (1.0, 0, 0, 0, 0), lambda image: image.flip(2, 3)),
        (Affine(translate=0.25), (0.5, 1.0, 0.5, 0, 0), lambda image: pad(image, (2, 0))[..., :8]),
        (Affine(translate=0.25), (0.5, 0.5, 0.0, 0, 0), lambda image: pad(image, (0, 0, 0, 2))[..., 2:, :]),
        (
            Affine(90, translate=0.25),
            (1.0, 1.0, 0.5, 0, 0),
            lambda image: pad(torch.rot90(image, 1, (3, 2)), (2, 0))[..., :8],
        ),
        (Affine(), (0.3, 0.9, 0.1, 0.2, 0.7), lambda image: image),
    ],
)
def test_geometry_is_exact_where_it_can_be(augment, numbers, expected):
    """Quarter and half turns, and moves by whole pixels, are what array operations make of them."""
    image = torch.rand(1, 2, 8, 8)
    found = augment({"image": image}, certain(*numbers))["image"]

    torch.testing.assert_close(found, expected(image), atol=2e-5, rtol=0)


def test_a_half_turn_of_a_wide_image_is_two_flips():
    """Angles are angles of pixels, also where width and height differ."""
    image = torch.rand(1, 1, 4, 10)
    turned = Rotate(180)({"image": image}, certain(1.0, 0, 0, 0, 0))["image"]
    # A quarter turn of a wide image keeps the square in its middle.
    quarter = Rotate(90)({"image": image}, certain(1.0, 0, 0, 0, 0))["image"]

    torch.testing.assert_close(turned, image.flip(2, 3), atol=2e-5, rtol=0)
    torch.testing.assert_close(quarter[..., 3:7], torch.rot90(image[..., 3:7], 1, (3, 2)), atol=2e-5, rtol=0)


def test_scale_and_shear_follow_their_matrices():
    """On a linear ramp, bilinear reading is exact: enlarging halves the slope, shearing adds one across."""
    x = torch.arange(16.0) - 7.5
    ramp = x.expand(1, 1, 16, 16)
    larger = Affine(scale=(2.0, 2.0), padding="border")({"image": ramp}, certain(0.5, 0.5, 0.5, 0.0, 0.5))["image"]
    sheared = Affine(shear=45.0, padding="border")({"image": ramp}, certain(0.5, 0.5, 0.5, 0.0, 1.0))["image"]
    middle = slice(5, 11)

    torch.testing.assert_close(larger, ramp / 2, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        sheared[0, 0, middle, middle], (x.view(1, -1) - x.view(-1, 1))[middle, middle], atol=1e-4, rtol=0
    )


def test_flip_mirrors_some():
    """An image is itself or its mirror image, each as often as `p` says."""
    image = torch.rand(1000, 1, 2, 3)
    flipped = Flip(0.3)({"image": image}, chance(1000))["image"]
    mirrored = (flipped == image.flip(3)).flatten(1).all(1)

    assert bool((mirrored | (flipped == image).flatten(1).all(1)).all())
    assert 240 < int(mirrored.sum()) < 360


def test_erase_blanks_a_rectangle():
    """What is blank is one rectangle of an allowed size, or nothing with probability 1 - p."""
    erased = Erase(0.8, sides=(0.2, 0.5))({"image": torch.ones(500, 1, 20, 20)}, chance(500))["image"][:, 0] == 0
    rows, columns = erased.any(2), erased.any(1)
    touched = rows.any(1)

    assert torch.equal(rows[:, :, None] & columns[:, None, :], erased)
    assert int(rows.sum(1).max()) <= 10
    assert int(columns.sum(1).max()) <= 10
    assert 350 < int(touched.sum()) < 450


def test_noise_is_normal():
    """Mean zero, the deviation asked for, and no pixel like its neighbour."""
    noise = Noise(2.0)({"image": torch.zeros(100, 1, 20, 20)}, chance(100))["image"].flatten()

    assert abs(noise.mean().item()) < 5 * 2 / math.sqrt(40_000)
    assert abs(noise.std().item() - 2) < 5 * 2 / math.sqrt(80_000)
    assert abs((noise[1:] * noise[:-1]).mean().item()) < 5 * 4 / math.sqrt(40_000)


def test_normal_numbers_follow_the_normal_distribution():
    """The largest distance between the two distribution functions is that of chance (Kolmogorov-Smirnov)."""
    drawn = torch.sort(chance(200).normal(100).flatten().double()).values
    expected = torch.special.ndtr(drawn)
    distance = (expected - torch.arange(1, 20_001) / 20_000).abs().max().item()

    assert distance * math.sqrt(20_000) < 2
    assert drawn[-1] > 3.5


def test_integers_are_even():
    """Each whole number of the interval comes equally often, none outside of it."""
    drawn = chance(700).integers(-3, 4, 10).flatten()
    counts = torch.bincount(drawn + 3, minlength=7)

    assert 7 == len(counts)
    assert ((counts - 1000.0) ** 2 / 1000).sum().item() < 6 + 5 * math.sqrt(12)
    with pytest.raises(ValueError, match="low < high"):
        chance().integers(3, 3, 1)


def test_names_and_parts_have_chances_of_their_own():
    """Draws of other names, kinds and parts of a composition have nothing in common."""
    one = chance(1000)
    rows = torch.stack(
        [
            one.uniform(1).flatten(),
            one.uniform(1, "other").flatten(),
            one.fold_in(0).uniform(1).flatten(),
            one.fold_in(1).uniform(1).flatten(),
            one.normal(1).flatten(),
            one.integers(0, 1000, 1).flatten().float(),
        ]
    )

    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max().item() < 5 / math.sqrt(1000)


def test_the_same_augmentation_twice_is_two():
    """In a composition two equal parts do not repeat each other's draws."""
    image = torch.zeros(4, 1, 3, 3)
    once = Compose([Noise(1.0)])({"image": image}, chance(4))["image"]
    twice = Compose([Noise(1.0), Noise(1.0)])({"image": image}, chance(4))["image"]

    assert not torch.allclose(2 * once, twice, atol=0.1)
    assert not torch.allclose(once, twice - once, atol=0.1)


def test_entries_are_found_by_name_or_place():
    """Tuples keep their kind; a missing entry and a wrong shape are named."""
    image, label = torch.rand(3, 1, 4, 4), torch.arange(3)

    assert isinstance(Shift(1, entry=0)((image, label), chance(3)), tuple)
    assert torch.equal(
        Shift(1, entry=0)((image, label), chance(3))[0], Shift(1, entry="x")({"x": image}, chance(3))["x"]
    )
    assert torch.equal(Shift(1, entry=0)(image, chance(3)), Shift(1)({"image": image}, chance(3))["image"])
    with pytest.raises(BatchError, match="name an entry it has"):
        Shift(1)((image, label), chance(3))
    with pytest.raises(
        ValueError, match=r"expected images of shape \[n, channels, height, width\] at 'image', got \[3\]"
    ):
        Shift(1)({"image": label}, chance(3))
    with pytest.raises(TypeError):
        Compose([lambda batch, chance: batch])
