"""The Loader in one process: reading from anywhere is the tail of reading everything."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler

from purerun.data import (
    Compose,
    Infinite,
    Loader,
    Noise,
    Position,
    Seeded,
    Sequential,
    Shift,
    Shuffle,
    Tensors,
    Weighted,
)
from purerun.random import Key
from tests.data.samples import Named, Noisy, generators, noisy_collate, rows, same, state


@attrs.frozen
class Ragged:
    """Batches of sizes 1, 2, 3, ... over a shuffled set."""

    def batches(self, seed, epoch, size):
        order = torch.randperm(size, generator=Key.of(seed, "ragged", epoch).generator()).tolist()
        cuts, start = [], 0
        while start < size:
            cuts.append(order[start : start + len(cuts) + 1])
            start += len(cuts)
        return cuts


def images(size):
    """Tensors that show which sample they are."""
    return Tensors(image=torch.arange(size * 16.0).view(size, 1, 4, 4), label=torch.arange(size))


def drawing(batch, chance):
    """A batch transform that reads the global generator, as somebody's would."""
    return {**batch, "noise": torch.rand(len(chance.positions)), "own": chance.uniform(1)}


DATASETS = st.builds(
    lambda make, size: make(size),
    st.sampled_from([images, Noisy, Named, lambda size: Tensors(torch.arange(size), torch.rand(size, 2))]),
    st.integers(1, 20),
)
ORDERS = st.sampled_from([None, Sequential(), Shuffle(), Shuffle("feistel"), Seeded(Shuffle(), seed=3)])


@st.composite
def loaders(draw):
    """A Loader of any kind, all of whose epochs have a batch."""
    dataset = draw(DATASETS)
    size = len(dataset)
    if draw(st.integers(0, 4)) == 0:
        return Loader(
            dataset, batch_sampler=draw(st.sampled_from([Ragged(), BatchSampler(RandomSampler(range(size)), 3, False)]))
        )
    order = draw(st.one_of(ORDERS, st.just(Weighted([1.0 + i for i in range(size)], num_samples=size + 3))))
    fields = {"order": order, "drop_last": draw(st.booleans()), "batch_size": draw(st.integers(1, size))}
    if type(dataset) is Noisy and draw(st.booleans()):
        fields["collate"] = noisy_collate
    elif isinstance(dataset, Tensors) and isinstance(dataset.entries, dict):
        fields["batch_transform"] = draw(st.sampled_from([None, drawing, Compose([Shift(1), Noise(0.5)])]))
        fields["transform"] = draw(st.sampled_from([None, lambda sample: {**sample, "one": torch.rand(())}]))
    return Loader(dataset, **fields)


def tail(loader, seed, epoch, cursor):
    return list(loader.read(seed, epoch, cursor))


@given(loaders(), st.integers(0, 3), st.integers(0, 3))
def test_reading_from_any_position_is_the_tail_of_reading_all(loader, seed, epoch):
    """Each position that a read gives leads to exactly the rest of that read, bit for bit."""
    whole = tail(loader, seed, epoch, 0)
    assert Position(epoch + 1, 0) == whole[-1][1]

    for done, (_, position) in enumerate(whole[:-1], 1):
        assert epoch == position.epoch
        assert same(whole[done:], tail(loader, seed, epoch, position.cursor))


@given(loaders(), st.integers(0, 3))
def test_reading_leaves_the_global_generators_alone(loader, seed):
    """Between two batches, and after the last, nothing can tell that anything was drawn."""
    before = generators()
    for _ in loader.read(seed, 0, 0):
        assert before == generators()

    assert before == generators()


@given(loaders(), st.integers(0, 3))
def test_what_was_drawn_before_has_no_influence(loader, seed):
    """The batches are the same whatever state the global generators are in."""
    first = tail(loader, seed, 1, 0)
    torch.rand(3)

    assert same(first, tail(loader, seed, 1, 0))


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from([Sequential(), Shuffle(), Shuffle("feistel")]))
def test_an_epoch_holds_every_sample_once(size, batch_size, order):
    """Nothing is lost, nothing comes twice, and the batches have the promised sizes."""
    batches = [batch for batch, _ in Loader(range(size), batch_size=batch_size, order=order).read(0, 0, 0)]

    assert list(range(size)) == sorted(torch.cat(batches).tolist())
    assert {batch_size} >= {len(batch) for batch in batches[:-1]}


@given(st.integers(1, 40), st.integers(1, 12))
def test_drop_last_leaves_out_the_tail(size, batch_size):
    """With drop_last only full batches come, and the last of them ends the epoch."""
    loader = Loader(range(size), batch_size=batch_size, drop_last=True)
    if size < batch_size:
        with pytest.raises(ValueError, match="at least one batch"):
            tail(loader, 0, 0, 0)
        return
    found = tail(loader, 0, 0, 0)

    assert [batch_size] * (size // batch_size) == [len(batch) for batch, _ in found]
    assert Position(1, 0) == found[-1][1]
    assert len(loader) == len(found)


@settings(max_examples=60)
@given(
    st.sampled_from([images, Noisy]),
    st.integers(2, 24),
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_the_batch_size_may_change_in_mid_epoch(make, size, sizes, seed):
    """Whatever the sequence of batch sizes, the same samples come with the same augmentation."""
    dataset = make(size)
    transform = Compose([Shift(1), Noise(0.1)]) if make is images else None
    loader = Loader(dataset, batch_size=size, shuffle=True, batch_transform=transform)
    whole = rows(batch for batch, _ in loader.read(seed, 2, 0))

    found, place, number = [], Position(2, 0), 0
    while place.epoch == 2:
        one = attrs.evolve(loader, batch_size=sizes[number % len(sizes)])
        batch, place = next(one.read(seed, *place[:2]))
        found.append(batch)
        number += 1

    assert same(whole, rows(found))


def test_nothing_before_the_cursor_is_loaded():
    """Seeking costs nothing: the dataset is asked for what is read only."""
    dataset = Noisy(1000, draws=())
    loader = Loader(dataset, batch_size=5)
    next(loader.read(0, 0, 990))

    assert [990, 991, 992, 993, 994] == dataset.asked


def test_a_seek_does_not_walk_through_the_order():
    """An order is asked for what is read and a bounded number of positions more."""
    spans = []

    class Spy(Sequential):
        def reader(self, seed, epoch, size):
            return lambda start, stop: spans.append((start, stop)) or torch.arange(start, stop)

    next(Loader(range(10**9), batch_size=4, order=Spy()).read(0, 0, 10**9 - 10))

    assert [(10**9 - 10, 10**9)] == spans


def test_a_sample_drawn_twice_is_augmented_twice():
    """Augmentation belongs to the position, not to the sample."""
    loader = Loader(Noisy(1), batch_size=4, order=Weighted([1.0], num_samples=4))
    batch = next(loader.read(0, 0, 0))[0]

    assert [0, 0, 0, 0] == batch["index"].tolist()
    assert 4 == len(set(batch["python"].tolist())) == len(set(batch["numpy"].tolist()))


def test_epochs_and_seeds_are_augmented_differently():
    """Neighbouring epochs and seeds share no draw."""
    loader = Loader(Noisy(50), batch_size=50)
    batches = [next(loader.read(seed, epoch, 0))[0] for seed, epoch in ((0, 0), (0, 1), (1, 0))]

    assert 150 == len({value for batch in batches for value in batch["torch"][:, 0].tolist()})


def test_batch_transforms_and_collates_differ_from_batch_to_batch():
    """Their chance is another one in each batch, epoch and seed, and the same from wherever reading began."""
    in_batch = Loader(images(40), batch_size=20, batch_transform=drawing)
    in_collate = Loader(Noisy(40, ("torch",)), batch_size=20, collate=noisy_collate)
    places = [(seed, epoch, cursor) for seed in (0, 1) for epoch in (0, 1) for cursor in (0, 20)]
    firsts = [next(in_batch.read(*place))[0] for place in places]

    assert 8 * 20 == len({value for batch in firsts for value in batch["noise"].tolist()})
    assert 8 * 20 == len({value for batch in firsts for value in batch["own"].flatten().tolist()})
    assert 8 == len({next(in_collate.read(*place))[0]["scale"] for place in places})
    assert same(tail(in_collate, 0, 0, 0)[1:], tail(in_collate, 0, 0, 20))


def test_an_endless_order_never_ends_the_epoch():
    """Batches go on across the inner epochs; the cursor keeps counting."""
    loader = Loader(range(5), batch_size=3, order=Infinite(Shuffle()))
    reading = loader.read(0, 0, 0)
    found = [next(reading) for _ in range(10)]

    assert [Position(0, 3 * number) for number in range(1, 11)] == [position for _, position in found]
    assert [6] * 5 == torch.bincount(torch.cat([batch for batch, _ in found])).tolist()
    assert same(found[4:], [batch for batch, _ in zip(loader.read(0, 0, 12), range(6), strict=False)])
    with pytest.raises(TypeError, match="not known"):
        len(loader)


def test_a_cursor_in_a_dropped_tail_reads_nothing():
    """`read` stays within its epoch; `seek` and `advance` agree on going to the next one."""
    loader = Loader(range(10), batch_size=4, shuffle=True, drop_last=True)
    stranded = state(epoch=2, cursor=8)

    assert [] == tail(loader, 0, 2, 8)
    assert same([batch for batch, _ in loader.read(0, 3, 0)], list(loader.seek(stranded)))
    assert (3, 4) == tuple(loader.advance(stranded)[name] for name in ("epoch", "cursor"))


@given(loaders(), st.integers(0, 2), st.data())
def test_advance_goes_where_reading_goes(loader, seed, data):
    """The state after the next batch is known without reading, from every position."""
    place = data.draw(st.sampled_from([Position(0, 0), *(position for _, position in tail(loader, seed, 0, 0))]))
    here = state(seed, place.epoch, place.cursor)
    batch, there = next(loader.read(seed, *place[:2]))
    advanced = loader.advance(here)

    assert there[:2] == (advanced["epoch"], advanced["cursor"])
    assert same(batch, next(loader.seek(here)))
    assert (seed, *place[:2]) == tuple(int(here[name]) for name in ("seed", "epoch", "cursor"))


@given(loaders())
def test_len_counts_the_batches(loader):
    """`len(loader)` is the number of batches of an epoch, where it is known."""
    if isinstance(loader.batch_sampler, Ragged):
        with pytest.raises(TypeError, match="not known"):
            len(loader)
        return

    assert len(loader) == len(tail(loader, 0, 0, 0))


@given(loaders(), st.integers(1, 5), st.integers(0, 2))
def test_the_shards_of_a_batch_are_the_batch(loader, shards, seed):
    """Contiguous slices, in order, of sizes that differ by one at most; positions count the global batch."""
    loader = attrs.evolve(
        loader, collate=None, batch_transform=None if loader.batch_transform is drawing else loader.batch_transform
    )
    whole = tail(loader, seed, 0, 0)
    parts = []
    for shard in range(shards):
        with loader.open(seed, shard=shard, shards=shards) as session:
            parts.append(list(session.read(0, 0)))

    for place, (batch, position) in enumerate(whole):
        slices = [part[place][0] for part in parts]
        sizes = [len(next(iter(one.values())) if isinstance(one, dict) else one[0]) for one in slices]
        assert same(rows([batch]), rows(slices))
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1
        assert {position} == {part[place][1] for part in parts}
        assert all(type(one) is type(batch) for one in slices)


def test_a_session_reads_epoch_after_epoch():
    """One session reads any epochs, in any order; a new read ends the one before; a closed one is refused."""
    loader = Loader(range(6), batch_size=2, shuffle=True)
    with loader.open(3) as session:
        for epoch in (0, 1, 0, 5):
            assert same(tail(loader, 3, epoch, 2), list(session.read(epoch, 2)))
        old = session.read(0, 0)
        next(old)
        next(session.read(1, 0))
        with pytest.raises(RuntimeError, match="one reader at a time"):
            next(old)
    with pytest.raises(RuntimeError, match="closed"):
        next(session.read(0, 0))


def test_a_foreign_batch_sampler_is_keyed():
    """A BatchSampler of torch gives an order that is a function of (seed, epoch)."""
    loader = Loader(range(30), batch_sampler=BatchSampler(RandomSampler(range(30)), 4, drop_last=True))
    orders = {
        (seed, epoch): torch.cat([batch for batch, _ in loader.read(seed, epoch, 0)]).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    torch.rand(5)

    assert 4 == len({tuple(order) for order in orders.values()})
    assert orders[1, 1][8:] == torch.cat([batch for batch, _ in loader.read(1, 1, 8)]).tolist()
    assert 7 == len(loader)


def test_the_middle_of_a_given_batch_begins_with_its_rest():
    """A cursor inside of a batch of the batch sampler neither loses nor repeats a sample."""
    loader = Loader(range(6), batch_sampler=[[5, 4, 3], [], [2, 1, 0]])

    assert [[4, 3], [2, 1, 0]] == [batch.tolist() for batch, _ in loader.read(0, 0, 1)]


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        ({}, ValueError, "expected batch_size to be a whole number >= 1, got None"),
        ({"batch_size": 0}, ValueError, "got 0"),
        ({"batch_size": 2.0}, ValueError, "got 2.0"),
        ({"batch_size": 2, "workers": -1}, ValueError, "expected workers"),
        ({"batch_size": 2, "prefetch": 0}, ValueError, "expected prefetch"),
        ({"batch_size": 2, "shuffle": True, "order": Shuffle()}, ValueError, "shuffle or order, got both"),
        ({"batch_size": 2, "order": RandomSampler(range(3))}, TypeError, "expected an Order"),
        ({"batch_size": 2, "batch_sampler": [[0]]}, ValueError, "batch_sampler alone"),
        ({"drop_last": True, "batch_sampler": [[0]]}, ValueError, "batch_sampler alone"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, error, told):
    """A wrong Loader says so when it is made."""
    with pytest.raises(error, match=told):
        Loader(range(3), **fields)


def test_what_cannot_be_read_is_refused():
    """Iterables, empty data sets, impossible positions and shards: each says what to do."""

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(TypeError, match=r"use purerun\.data\.Stream"):
        Loader(Endless(), batch_size=1)
    with pytest.raises(TypeError, match="__len__"):
        Loader(iter([1]), batch_size=1)
    with pytest.raises(ValueError, match="an empty one"):
        next(Loader([], batch_size=1).read(0, 0, 0))
    with pytest.raises(ValueError, match="another dataset"):
        next(Loader([1, 2], batch_size=1).read(0, 0, 3))
    with pytest.raises(ValueError, match=r"a shard in \[0, 2\)"):
        Loader([1, 2], batch_size=1).open(0, shard=2, shards=2)


def test_an_error_names_the_sample():
    """A sample that cannot be made says which one it was, and where in the order."""

    class Broken(Noisy):
        def __getitem__(self, index):
            return {"index": index} if index != 7 else 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        tail(Loader(Broken(20), batch_size=4), 0, 3, 4)

    assert ["while making sample 7 of the dataset, at position 7 of epoch 3"] == caught.value.__notes__


def test_loaders_are_values():
    """Equal fields make equal loaders; the text is short whatever the dataset."""
    dataset = list(range(1000))

    assert Loader(dataset, batch_size=2) == Loader(dataset, batch_size=2)
    assert Loader(dataset, batch_size=2) != Loader(list(dataset), batch_size=2)
    assert Loader(images(3), batch_size=2) == Loader(images(3), batch_size=2)
    assert hash(Loader(images(3), batch_size=2)) == hash(Loader(images(3), batch_size=2))
    assert repr(Loader(dataset, batch_size=2)).startswith("Loader(dataset=list[1000], batch_size=2, shuffle=False,")
