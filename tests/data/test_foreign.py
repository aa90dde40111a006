"""Foreign loaders: as much exactness as they can give, and a clear word where that is not all."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from purerun.data import Foreign, InexactResume, Loader, Position, as_loader
from purerun.data.slot import empty
from tests.data.samples import Noisy, generators, rows, same, state


def everything(source, seed=0, epoch=0, cursor=0, stream=None):
    return list(as_loader(source).read(seed, epoch, cursor, stream))


def shuffled(size=20, batch_size=4, **fields):
    return DataLoader(Noisy(size), batch_size, shuffle=True, **fields)


class Counting:
    """Batches from a generator that writes down where it stands, as stateful data loaders do."""

    def __init__(self, length=5):
        self.length, self.place, self.laps, self.loaded = length, 0, 0, []

    def __iter__(self):
        while self.place < self.length:
            self.place += 1
            self.loaded.append(self.place)
            yield {"x": torch.tensor([self.place, self.laps]), "chance": torch.rand(2)}
        self.place, self.laps = 0, self.laps + 1

    def state_dict(self):
        return {"place": self.place, "laps": self.laps, "kind": ("counting", b"\x00")}

    def load_state_dict(self, state):
        assert ("counting", b"\x00") == state["kind"]
        self.place, self.laps = state["place"], state["laps"]


class Seeking:
    """Batches of two from any position of any epoch."""

    def __init__(self):
        self.asked = []

    def __iter__(self):
        return self.seek(0, 0)

    def seek(self, epoch, position):
        self.asked.append((epoch, position))
        return (torch.tensor([start, start + 1]) + 100 * epoch for start in range(position, 10, 2))


def test_the_order_of_a_dataloader_is_a_function_of_seed_and_epoch():
    """`DataLoader(shuffle=True)`: same seed and epoch, same batches, transforms included; others differ."""
    found = {(seed, epoch): everything(shuffled(), seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    torch.rand(3), np.random.rand(), random.random()

    assert all(same(one, everything(shuffled(), *place)) for place, one in found.items())
    assert 4 == len({str(rows(batch for batch, _ in one)) for one in found.values()})
    assert list(range(20)) == sorted(int(row[0]) for row in rows(batch for batch, _ in found[1, 1]))


def test_reading_leaves_the_global_generators_alone():
    """A DataLoader draws from the global generator; nothing of that is seen outside."""
    before = generators()
    for _ in as_loader(shuffled()).read(0, 0, 0):
        assert before == generators()

    assert before == generators()


def test_going_on_in_mid_epoch_skips_and_warns():
    """The warning names the source, the place and the remedy; here the rest is exact."""
    whole = everything(shuffled(), 0, 3)
    with pytest.warns(
        InexactResume, match=r"epoch 3 goes on at sample 8, and DataLoader has .* use purerun.data.Loader"
    ):
        rest = everything(shuffled(), 0, 3, 8)

    assert same(whole[2:], rest)


def test_a_cursor_inside_of_a_batch_begins_with_its_rest():
    """When the batch size changed, no sample is lost or repeated."""
    whole = rows(batch for batch, _ in everything(DataLoader(TensorDataset(torch.arange(10), torch.rand(10)), 4)))
    with pytest.warns(InexactResume):
        found = everything(DataLoader(TensorDataset(torch.arange(10), torch.rand(10)), 4), cursor=6)

    assert [int(row[0]) for row in whole[6:]] == [int(row[0]) for row in rows(batch for batch, _ in found)]
    assert [Position(0, 8), Position(1, 0)] == [position for _, position in found]


def test_a_dataloader_with_workers_is_read_too():
    """Order is keyed with workers as without."""
    found = [everything(DataLoader(range(12), 5, shuffle=True, num_workers=1), 3, 1) for _ in range(2)]

    assert same(*found)
    assert same(everything(DataLoader(range(12), 5, shuffle=True), 3, 1), found[0])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.data())
def test_a_list_of_batches_begins_anywhere(sizes, data):
    """Lists are exact from every sample, without a warning, in every epoch."""
    ends = np.cumsum(sizes).tolist()
    batches = [torch.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    cursor = data.draw(st.integers(0, ends[-1] - 1))
    found = everything(batches, epoch=2, cursor=cursor)

    assert list(range(cursor, ends[-1])) == torch.cat([batch for batch, _ in found]).tolist()
    assert [Position(2, end) for end in ends if cursor < end < ends[-1]] + [Position(3, 0)] == [p for _, p in found]


def test_a_generator_is_good_for_one_epoch():
    """It is read once; a second epoch and a start in the middle are refused, with the reason."""
    loader = as_loader(torch.arange(2) + number for number in range(3))

    assert [Position(0, 2), Position(0, 4), Position(1, 0)] == [position for _, position in loader.read(0, 0, 0)]
    with pytest.raises(ValueError, match=r"got none from generator in epoch 1; it can be run through only once"):
        next(loader.read(0, 1, 0))
    with pytest.raises(ValueError, match=r"got sample 4 of epoch 0: generator can be run through only once"):
        next(loader.read(0, 0, 4))


def test_a_source_that_seeks_is_asked_to():
    """`seek(epoch, position)` is exact: no warning, and nothing is loaded before the position."""
    source = Seeking()
    whole = everything(source, 0, 2)

    assert same(whole[3:], everything(source, 0, 2, 6))
    assert [(2, 0), (2, 6)] == source.asked
    assert {} == as_loader(source).slots()


def test_a_source_with_a_state_goes_on_from_its_slot():
    """From each position, also at an epoch's end, a new source goes on exactly; the slot keeps its shape."""
    whole, stream = [], None
    for epoch in range(3):
        whole += everything(Counting(), 0, epoch, 0, stream)
        stream = whole[-1][1].stream
    assert 15 == len(whole)

    for done in range(14):
        place, source = whole[done][1], Counting()
        rest = everything(source, 0, place.epoch, place.cursor, place.stream)
        assert same([batch for batch, _ in whole[done + 1 : done + 1 + len(rest)]], [batch for batch, _ in rest])
        assert len(source.loaded) == len(rest) == 5 - (done + 1) % 5
        assert (torch.uint8, (65536,)) == (place.stream.dtype, tuple(place.stream.shape))


def test_the_slot_of_a_source_with_a_state():
    """It is declared at full size; what does not fit, and a state without it, are told."""
    assert same({"stream": empty(100)}, Foreign(Counting(), capacity=100).slots())
    assert {} == as_loader([1]).slots() == as_loader(shuffled()).slots()
    with pytest.raises(ValueError, match="larger capacity"):
        next(Foreign(Counting(), capacity=50).read(0, 0, 0))
    with pytest.warns(InexactResume):
        next(as_loader(Counting()).read(0, 0, 4))
    with pytest.raises(TypeError, match="only reading can tell"):
        as_loader(Counting()).advance(state())

    _, position = next(as_loader(Counting()).read(0, 0, 0))
    written = position.into(state())
    assert (0, 2) == (written["epoch"], written["cursor"])
    assert same(position.stream, written["stream"])
    assert [3, 4] == [batch["x"][0].item() for batch in as_loader(Counting()).seek(written)][1:3]


def test_advance_knows_lists_and_dataloaders():
    """Where the length is known without reading, `advance` goes where reading goes."""
    sources = [
        DataLoader(range(10), 4),
        DataLoader(range(10), 4, drop_last=True),
        DataLoader(range(8), 4),
        [torch.arange(3), torch.arange(1)],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InexactResume)
        for source in sources:
            loader = as_loader(source)
            for cursor in (0, *(position.cursor for _, position in everything(source)[:-1])):
                there = next(loader.read(0, 0, cursor))[1]
                assert there[:2] == tuple(loader.advance(state(0, 0, cursor))[name] for name in ("epoch", "cursor"))
            assert len(everything(source)) == len(loader)


def test_shards_cut_every_batch():
    """Each shard keeps its slice of each batch, empty ones too."""
    loader = as_loader([torch.arange(5), torch.arange(1)])
    parts = []
    for shard in range(3):
        with loader.open(0, shard=shard, shards=3) as session:
            parts.append([(batch.tolist(), position[:2]) for batch, position in session.read(0, 0)])

    assert [[0, 1], [2, 3], [4]] == [part[0][0] for part in parts]
    assert [[0], [], []] == [part[1][0] for part in parts]
    assert [(0, 5)] * 3 == [part[0][1] for part in parts]


def test_what_is_no_source_is_refused():
    """Empty sources and things that cannot be iterated over are named."""
    with pytest.raises(TypeError, match="expected a Loader or an iterable of batches, got int"):
        as_loader(3)
    with pytest.raises(ValueError, match="an empty list"):
        everything([])
    with pytest.raises(ValueError, match="got none from DataLoader in epoch 0; give it data"):
        everything(DataLoader(range(3), 4, drop_last=True))
    with pytest.raises(TypeError, match="has no len"):
        len(as_loader(iter([1])))


def test_sources_stay_as_they_are():
    """A Loader, and what as_loader made, pass through."""
    loader = Loader([1], batch_size=1)
    foreign = as_loader([1])

    assert loader is as_loader(loader)
    assert foreign is as_loader(foreign)
