"""Streams: data sets that can only be iterated over, by their three ways into the middle of an epoch."""

from __future__ import annotations

import random

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, get_worker_info

from purerun.data import Compose, InexactResume, Noise, Stream
from tests.data.samples import generators, rows, same, state


class Plain(IterableDataset):
    """Samples that draw, from an iterator."""

    def __init__(self, size):
        self.size, self.drawn = size, 0

    def __iter__(self):
        info = get_worker_info()
        part = range(self.size) if info is None else range(info.id, self.size, info.num_workers)
        return (self.sample(index) for index in part)

    def sample(self, index):
        self.drawn += 1
        return {"index": index, "image": torch.rand(1, 2, 2), "python": random.random()}


class Seeking(Plain):
    """The same with `seek`; every epoch another order."""

    def seek(self, epoch, position):
        order = [(index * 7 + epoch) % self.size for index in range(self.size)]
        return (self.sample(index) for index in order[position:])


class Stateful(Plain):
    """The same with a state; each epoch continues a counter of its own."""

    def __init__(self, size):
        super().__init__(size)
        self.place = self.total = 0

    def __iter__(self):
        while self.place < self.size:
            self.place, self.total = self.place + 1, self.total + 1
            yield self.sample(self.total)
        self.place = 0

    def state_dict(self):
        return {"place": self.place, "total": self.total}

    def load_state_dict(self, state):
        self.place, self.total = state["place"], state["total"]


def everything(stream, epoch=0, cursor=0, slot=None):
    return list(stream.read(5, epoch, cursor, slot))


def batches(found):
    return [batch for batch, _ in found]


@given(st.sampled_from([Plain, Seeking, Stateful]), st.integers(1, 14), st.integers(1, 5), st.booleans())
def test_batches_hold_the_samples_in_their_order(kind, size, batch_size, drop_last):
    """An epoch is cut into batches of one size; positions count samples and end in normal form."""
    stream = Stream(kind(size), batch_size=batch_size, drop_last=drop_last)
    if drop_last and size < batch_size:
        with pytest.raises(ValueError, match="at least one batch"):
            everything(stream)
        return
    before = generators()
    found = everything(stream)
    kept = size // batch_size * batch_size if drop_last else size

    assert kept == len(rows(batches(found)))
    assert [(0, end) for end in range(batch_size, kept, batch_size)] == [p[:2] for _, p in found[:-1]]
    assert (1, 0) == found[-1][1][:2]
    assert before == generators()


@given(st.integers(2, 14), st.integers(1, 5), st.integers(1, 5), st.data())
def test_a_seeking_stream_goes_on_with_any_batch_size(size, one, other, data):
    """From each sample on, with another batch size: same samples, same draws, nothing loaded before."""
    whole = rows(batches(everything(Stream(Seeking(size), batch_size=one), 2)))
    cursor = data.draw(st.integers(1, size - 1))
    dataset = Seeking(size)
    rest = rows(batches(everything(Stream(dataset, batch_size=other), 2, cursor)))

    assert same(whole[cursor:], rest)
    assert size - cursor == dataset.drawn


@given(st.integers(2, 9), st.integers(1, 4), st.integers(1, 4))
def test_a_stateful_stream_goes_on_from_its_slot(size, one, other):
    """A new dataset goes on from each position of three epochs, with another batch size."""
    dataset, slot, found = Stateful(size), None, []
    for epoch in range(3):
        found += everything(Stream(dataset, batch_size=one), epoch, 0, slot)
        slot = found[-1][1].stream
    whole = rows(batches(found))

    for _, place in found[:-1]:
        fresh = Stateful(size)
        rest = rows(batches(everything(Stream(fresh, batch_size=other), *place)))
        assert same(whole[place.epoch * size + place.cursor :][: len(rest)], rest)
        assert size - place.cursor == len(rest) == fresh.drawn


def test_a_plain_stream_is_skipped_through_with_a_warning():
    """What was consumed is drawn again, sample by sample, under the same keys."""
    stream = Stream(Plain(10), batch_size=3)
    whole = rows(batches(everything(stream)))
    with pytest.warns(InexactResume, match=r"sample 4, and Plain has .* give the dataset seek\(epoch, position\)"):
        rest = everything(stream, 0, 4)

    assert same(whole[4:], rows(batches(rest)))


def test_transforms_collate_and_chance_are_keyed():
    """A stream's transforms are functions of the position, as a Loader's are."""
    stream = Stream(
        Seeking(12),
        batch_size=4,
        transform=lambda sample: {**sample, "own": torch.rand(1)},
        batch_transform=Compose([Noise(1.0)]),
    )
    whole = rows(batches(everything(stream, 1)))

    assert same(whole[5:], rows(batches(everything(attrs.evolve(stream, batch_size=3), 1, 5))))
    assert 12 == len({float(batch["own"][place]) for batch in batches(everything(stream, 1)) for place in range(4)})


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_of_a_stream_are_its_batches(workers):
    """Each shard keeps its slice of each batch; together they are the batch, also where some are empty."""
    stream = Stream(Plain(10), batch_size=4, workers=workers, batch_transform=Noise(0.5))
    parts = []
    for shard in range(3):
        with stream.open(5, shard=shard, shards=3) as session:
            parts.append(list(session.read(0, 0)))
    whole = everything(stream)

    assert same(rows(batches(whole)), rows(batch for row in zip(*map(batches, parts), strict=True) for batch in row))
    assert [[2, 2, 1], [1, 1, 1], [1, 1, 0]] == [[len(batch["index"]) for batch in batches(part)] for part in parts]
    assert all([p for _, p in part] == [p for _, p in whole] for part in parts)


def test_workers_share_a_plain_stream_out():
    """With workers the dataset divides itself; the order is theirs, and repeats."""
    stream = Stream(Plain(9), batch_size=2, workers=2, transform=lambda sample: sample["index"])
    found = [torch.cat(batches(everything(stream, epoch))).tolist() for epoch in (1, 1)]

    assert list(range(9)) == sorted(found[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", [Seeking, Stateful])
def test_workers_are_refused_where_a_place_must_be_kept(kind):
    """One place cannot be spread over processes."""
    with pytest.raises(ValueError, match=f"expected workers=0 for {kind.__name__}, .* leave workers out"):
        Stream(kind(3), batch_size=1, workers=2)


def test_what_is_no_stream_is_refused():
    """Wrong fields say so; a length is not known."""
    with pytest.raises(ValueError, match="batch_size"):
        Stream(Plain(3), batch_size=0)
    with pytest.raises(TypeError, match="got int"):
        Stream(3, batch_size=1)
    with pytest.raises(TypeError, match="only reading can tell"):
        Stream(Plain(3), batch_size=1).advance(state())
    assert {"stream"} == set(Stream(Stateful(3), batch_size=1).slots())
    assert {} == Stream(Seeking(3), batch_size=1).slots()
