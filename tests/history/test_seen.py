"""When a sample was trained on."""

from __future__ import annotations

import attrs
import pytest
import torch

import purerun as pr
from purerun.checkpoint import point
from purerun.history import HistoryError, rewind, seen
from tests.history.runs import DATA, RECIPE, ran


class Numbered:
    """A dataset that knows who has been asked for, and says so in each sample."""

    def __init__(self, size=20):
        self.asked = []
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked.append(index)
        return {"x": torch.tensor([1.0, float(index), 0.0]), "y": torch.tensor(index % 2)}


def read(loader, iters, batch_sizes=None, seed=0):
    """List (iter, epoch, position, index) of all samples of a run, by reading."""
    found, epoch, cursor, iter = [], 0, 0, 0
    while iter < iters:
        for batch, position in attrs.evolve(loader, batch_size=(batch_sizes or {}).get(iter, loader.batch_size)).read(
            seed, epoch, cursor
        ):
            iter += 1
            rows = batch["x"][:, 1].int().tolist()
            found += [(iter, epoch, cursor + place, index) for place, index in enumerate(rows)]
            epoch, cursor, _ = position
            break
    return found


def sightings(run, recipe, sample):
    return [(each.iter, each.epoch, each.position) for each in seen(run, recipe, sample)]


@pytest.mark.parametrize(
    "order",
    [
        {"shuffle": True},
        {},
        {"order": pr.data.Shuffle("feistel"), "drop_last": True},
        {"order": pr.data.Weighted([float(1 + i % 3) for i in range(20)], num_samples=30)},
        {"order": pr.data.Weighted([float(1 + i % 3) for i in range(20)], replacement=False, num_samples=10)},
        {"order": pr.data.Infinite()},
    ],
    ids=["shuffle", "sequential", "feistel", "weighted", "without replacement", "infinite"],
)
def test_a_sample_is_seen_where_it_was_read(tmp_path, order):
    """Whatever the order: as often as it was drawn."""
    loader = pr.Loader(Numbered(), batch_size=8, **order)
    recipe = attrs.evolve(RECIPE, train=loader, epochs=None, iters=11)
    ran(tmp_path / "run", recipe=recipe)
    expected = read(loader, 11)

    for sample in range(20):
        assert [row[:3] for row in expected if row[3] == sample] == sightings(tmp_path / "run", recipe, sample)


def test_no_data_is_read(tmp_path):
    """Only counted."""
    data = Numbered()
    recipe = attrs.evolve(RECIPE, train=pr.Loader(data, batch_size=8, shuffle=True))
    ran(tmp_path / "run", recipe=recipe)
    data.asked.clear()
    found = sightings(tmp_path / "run", recipe, 3)

    assert (4, []) == (len(found), data.asked)


@pytest.mark.parametrize("drop_last", [False, True])
def test_changes_of_the_batch_size_are_respected(tmp_path, drop_last):
    """In mid-epoch; with a tail that is dropped, too."""
    loader = pr.Loader(Numbered(), batch_size=8, shuffle=True, drop_last=drop_last)
    recipe = attrs.evolve(RECIPE, train=loader, epochs=None, iters=2)
    run = ran(tmp_path / "run", recipe=recipe)
    ran(run, "train.batch_size=5", "iters=4", resume="last", recipe=recipe)
    ran(
        run,
        "train.batch_size=3",
        "iters=9",
        resume="last",
        recipe=attrs.evolve(recipe, iters=4, train=attrs.evolve(loader, batch_size=5)),
    )
    sizes = {iter: 8 if iter < 2 else 5 if iter < 4 else 3 for iter in range(9)}
    expected = read(loader, 9, sizes)

    for sample in range(20):
        assert [row[:3] for row in expected if row[3] == sample] == sightings(run, recipe, sample)


def test_a_change_of_the_seed_is_respected(tmp_path):
    """The order after it is another."""
    loader = pr.Loader(Numbered(), batch_size=8, shuffle=True)
    recipe = attrs.evolve(RECIPE, train=loader, epochs=1)
    run = ran(tmp_path / "run", recipe=recipe)
    ran(run, "seed=5", "epochs=2", resume="last", recipe=recipe)
    before = [row for row in read(loader, 6) if row[1] == 0]
    after = [row for row in read(loader, 6, seed=5) if row[1] == 1]

    for sample in range(20):
        assert [row[:3] for row in (*before, *after) if row[3] == sample] == sightings(run, recipe, sample)


def test_batches_that_were_drawn_up_are_known(tmp_path):
    """A batch sampler gives indices, and no data."""
    batches = [[3, 1, 2], [7, 7], [19, 3, 0, 5]]
    recipe = attrs.evolve(RECIPE, train=pr.Loader(DATA, batch_sampler=batches), epochs=2)
    run = ran(tmp_path / "run", recipe=recipe)

    assert [(1, 0, 0), (3, 0, 6), (4, 1, 0), (6, 1, 6)] == sightings(run, recipe, 3)
    assert [(2, 0, 3), (2, 0, 4), (5, 1, 3), (5, 1, 4)] == sightings(run, recipe, 7)
    assert [] == sightings(run, recipe, 4)


def test_it_is_told_up_to_where_the_run_stands(run):
    """Also after it was taken back."""
    point(run, "iter_00000010")
    ten = sightings(run, RECIPE, 3)
    rewind(run, RECIPE, 1)
    one = sightings(run, RECIPE, 3)
    point(run, "iter_00000012")

    assert [row for row in sightings(run, RECIPE, 3) if row[0] <= 10] == ten
    assert [row for row in ten if row[0] <= 1] == one


def test_what_is_no_sample_is_refused(run):
    """They are counted from 0."""
    for sample in (-1, 20):
        with pytest.raises(HistoryError, match=f"expected a sample from 0 to 19, .* got {sample}"):
            sightings(run, RECIPE, sample)


def test_batches_of_others_are_refused(tmp_path):
    """Only reading could tell."""
    recipe = attrs.evolve(RECIPE, train=[DATA.rows(torch.arange(10))])
    run = ran(tmp_path / "run", recipe=recipe)

    with pytest.raises(
        HistoryError, match=r"expected a pr\.Loader, which knows its order without reading, got Foreign"
    ):
        sightings(run, recipe, 3)


def test_another_dataset_is_noticed(tmp_path):
    """Its epochs end elsewhere."""
    recipe = attrs.evolve(RECIPE, train=pr.Loader(Numbered(20), batch_size=8))
    run = ran(tmp_path / "run", recipe=recipe)
    sampler = attrs.evolve(recipe, train=pr.Loader(Numbered(21), batch_size=8))

    with pytest.raises(HistoryError, match=r"train\.dataset\.length"):
        sightings(run, sampler, 3)
