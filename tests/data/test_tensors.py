"""Tensors: data sets in memory, read a batch at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from purerun.data import Digits, Infinite, Loader, Sequential, Shuffle, Tensors
from tests.data.samples import same


@given(st.integers(1, 30), st.integers(1, 9), st.booleans())
def test_batches_are_those_of_a_dataloader(size, batch_size, drop_last):
    """In sequential order the batches are torch's own, bit for bit."""
    image, label = torch.rand(size, 2, 3), torch.arange(size)
    if drop_last and size < batch_size:
        return
    theirs = DataLoader(TensorDataset(image, label), batch_size, drop_last=drop_last)
    ours = Loader(Tensors(image, label), batch_size=batch_size, drop_last=drop_last)

    assert same([tuple(batch) for batch in theirs], [batch for batch, _ in ours.read(0, 0, 0)])


@given(st.sampled_from([Sequential(), Shuffle(), Infinite(Sequential())]), st.integers(1, 12))
def test_writing_into_a_batch_never_changes_the_dataset(order, batch_size):
    """Batches are copies, also of neighbouring samples, whole sets, and single ones."""
    image, label = torch.rand(12, 3), torch.arange(12)
    data, kept = Tensors(image=image, label=label), (image.clone(), label.clone())
    loader = Loader(data, batch_size=batch_size, order=order)
    for (batch, _), _ in zip(loader.read(0, 0, 0), range(12), strict=False):
        batch["image"].fill_(-1)
        batch["label"].fill_(-1)
    data[3]["image"].fill_(-1)

    assert torch.equal(kept[0], image)
    assert torch.equal(kept[1], label)


def test_the_fast_path_equals_the_slow_one():
    """A transform that does nothing takes samples one by one, and gives the same batches."""
    data = Tensors(image=torch.rand(10, 2), label=torch.arange(10))
    fast = Loader(data, batch_size=3, shuffle=True)
    slow = Loader(data, batch_size=3, shuffle=True, transform=lambda sample: sample)

    assert same(list(fast.read(0, 0, 0)), list(slow.read(0, 0, 0)))


def test_no_sample_is_touched_by_python():
    """The fast path never asks for a single sample."""

    class Spied(Tensors):
        def row(self, index):
            raise AssertionError(index)

    batches = list(Loader(Spied(torch.arange(5)), batch_size=2, shuffle=True).read(0, 0, 0))

    assert 3 == len(batches)


def test_strided_tensors_are_data_too():
    """Views of any strides are read as what they show."""
    data = Tensors(torch.arange(24.0).view(4, 6).T)
    batch = next(Loader(data, batch_size=6).read(0, 0, 0))[0][0]

    assert torch.equal(torch.arange(24.0).view(4, 6).T, batch)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
)
@pytest.mark.parametrize("width", [3, 1000, 70_000])
def test_rows_are_copied_alike_whatever_their_size(dtype, width):
    """Small, middling and large batches of any dtype are what indexing gives, in memory aligned as torch aligns it."""
    tensor = torch.randint(0, 2, (50, width)).to(dtype)
    indices = torch.randint(50, (64,))
    (found,) = Tensors(tensor).rows(indices)

    assert same(tensor[indices], found)
    assert 0 == found.data_ptr() % 64
    for wrong in (-1, 50):
        with pytest.raises(IndexError):
            Tensors(tensor).rows(torch.cat([indices, torch.tensor([wrong])]))


def test_tensors_are_values():
    """Equality and hash follow names and numbers; the text shows names, dtypes and shapes."""
    one, other = Tensors(x=torch.arange(3)), Tensors(x=torch.arange(3))

    assert one == other
    assert hash(one) == hash(other)
    assert one != Tensors(y=torch.arange(3))
    assert one != Tensors(x=torch.arange(3.0))
    assert one != Tensors(torch.arange(3))
    assert one != Tensors(x=torch.tensor([0, 1, 3]))
    assert "Tensors(int64[3], float32[3, 2])" == repr(Tensors(torch.arange(3), torch.zeros(3, 2)))


@pytest.mark.parametrize(
    ("tensors", "named", "told"),
    [
        ([], {}, "either all named or all unnamed"),
        ([torch.zeros(1)], {"x": torch.zeros(1)}, "either all named or all unnamed"),
        ([[1, 2]], {}, r"got \['list'\]"),
        ([torch.zeros(2), torch.zeros(3)], {}, r"got shapes \[\[2\], \[3\]\]"),
        ([torch.zeros(())], {}, "one length"),
    ],
)
def test_what_is_no_set_of_tensors_is_refused(tensors, named, told):
    """The message says what was given and how to write it."""
    with pytest.raises(ValueError, match=told):
        Tensors(*tensors, **named)


def test_digits_are_split_for_ever():
    """A fifth of each digit is for testing; the two parts share no image and lose none."""
    train, test = Digits("train"), Digits("test")
    labels = [torch.bincount(part.tensors().entries["label"]).tolist() for part in (train, test)]

    assert (1438, 359) == (len(train), len(test))
    assert [[142, 146, 142, 146, 145, 146, 145, 143, 139, 144], [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]] == labels
    assert [float(part.tensors().entries["image"].double().sum()) for part in (train, test)] == [28079.5625, 7027.8125]


def test_digits_are_what_scikit_learn_has():
    """Images in [0, 1] with one channel, and their labels."""
    from sklearn.datasets import load_digits

    image, label = load_digits(return_X_y=True)
    parts = [Digits(split).tensors().entries for split in ("train", "test")]
    ours = torch.cat([part["image"] for part in parts]).view(-1, 64) * 16
    rows = {
        (*row, number)
        for row, number in zip(ours.tolist(), torch.cat([p["label"] for p in parts]).tolist(), strict=True)
    }

    assert {(*row, number) for row, number in zip(image.tolist(), label.tolist(), strict=True)} == rows
    assert (1, 8, 8) == tuple(Digits()[0]["image"].shape)
    assert torch.float32 == Digits()[0]["image"].dtype
    assert Digits("train") == Digits()
