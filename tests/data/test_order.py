"""Orders: laws of pure functions, and the quality of the shuffle as a distribution."""

from __future__ import annotations

from itertools import pairwise, permutations
from math import sqrt

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purerun.data import Infinite, Order, Sequential, Shuffle, Weighted

METHODS = ("randperm", "feistel")

# All statistics below are standardised; with fixed seeds they are fixed numbers, and 5 is far from any honest one.
WIDE = 5.0


@attrs.frozen
class Congruential(Order):
    """A linear congruential "shuffle" with seed + epoch: the mistake that these tests are there to notice."""

    def length(self, size):
        return size

    def reader(self, seed, epoch, size):
        factor = 1 + 6 * (seed + epoch)
        while torch.gcd(torch.tensor(factor), torch.tensor(size)) != 1:
            factor += 1
        return lambda start, stop: (torch.arange(start, stop) * factor + seed + epoch) % size


def epochs(order, size, count, *, seeds=False):
    """Permutations of neighbouring epochs, or of the first epoch of neighbouring seeds."""
    places = [(number, 0) if seeds else (0, number) for number in range(count)]
    return torch.stack([order.indices(seed, epoch, 0, size, size) for seed, epoch in places])


def table_score(table):
    """Standardised chi-square of the counts (position, index) over permutations."""
    count, size = table.shape
    counts = torch.zeros(size, size).index_put_(
        (torch.arange(size).expand(count, -1), table), torch.ones(()), accumulate=True
    )
    expected = count / size
    statistic = ((counts - expected) ** 2 / expected).sum().item() * (size - 1) / size
    freedom = (size - 1) ** 2
    return (statistic - freedom) / sqrt(2 * freedom)


def correlation_score(one, other):
    """Standardised mean product of two rows of indices, over all rows."""
    size = one.shape[-1]
    centred = [
        (row.double() - row.double().mean(-1, keepdim=True)) / row.double().std(-1, keepdim=True)
        for row in (one, other)
    ]
    products = (centred[0] * centred[1]).mean(-1)
    return products.mean().item() * sqrt(size * len(products))


def rare_score(events):
    """Standardised number of events that should come once a row."""
    return (events.sum().item() - len(events)) / sqrt(len(events))


def scores(table):
    """Every measure of a table of permutations [count, size] that should be near zero."""
    return {
        "serial": correlation_score(table[:, :-1], table[:, 1:]),
        "far serial": correlation_score(table[:, :-7], table[:, 7:]),
        "pairs kept": rare_score(table[:, 1:] - table[:, :-1] == 1),
        "between rows": correlation_score(table[:-1], table[1:]),
        "places kept between rows": rare_score(table[:-1] == table[1:]),
        "pairs kept between rows": rare_score(neighbours_kept(table)),
    }


def neighbours_kept(table):
    """Mark pairs that follow each other in one row and also in the next."""
    size = table.shape[1]
    pairs = [torch.sort(row[:-1] * size + row[1:]).values for row in table]
    return torch.stack([torch.isin(other, one) for one, other in pairwise(pairs)])


@pytest.mark.parametrize("seeds", [False, True], ids=["epochs", "seeds"])
@pytest.mark.parametrize("method", METHODS)
def test_every_index_comes_equally_often_at_every_position(method, seeds):
    """Over neighbouring epochs, and over neighbouring seeds, the table (position, index) is even."""
    assert abs(table_score(epochs(Shuffle(method), 20, 600, seeds=seeds))) < WIDE


@pytest.mark.parametrize("seeds", [False, True], ids=["epochs", "seeds"])
@pytest.mark.parametrize("size", [1000, 1024, 4099])
@pytest.mark.parametrize("method", METHODS)
def test_neighbours_have_nothing_in_common(method, size, seeds):
    """Positions, epochs and seeds next to each other are uncorrelated, also for sizes just above a power of two."""
    found = scores(epochs(Shuffle(method), size, 60, seeds=seeds))

    assert {} == {name: score for name, score in found.items() if abs(score) >= WIDE}


@pytest.mark.parametrize("method", METHODS)
def test_seed_and_epoch_are_not_added(method):
    """The next epoch of one seed is not the same epoch of the next seed."""
    orders = {
        tuple(Shuffle(method).indices(seed, epoch, 0, 50, 50).tolist()) for seed in range(4) for epoch in range(4)
    }

    assert 16 == len(orders)


def test_a_linear_congruential_order_would_be_noticed():
    """The same measures refuse an order that only looks shuffled."""
    found = scores(epochs(Congruential(), 4099, 60))

    assert max(abs(found["serial"]), abs(found["far serial"])) > WIDE
    assert abs(table_score(epochs(Congruential(), 20, 600))) > WIDE


@pytest.mark.parametrize("method", METHODS)
def test_all_permutations_are_equally_likely(method):
    """Of four samples each of the 24 permutations comes equally often: no order is out of reach."""
    table = epochs(Shuffle(method), 4, 1200)
    counts = torch.tensor([(table == torch.tensor(one)).all(1).sum() for one in permutations(range(4))])
    statistic = ((counts - 50.0) ** 2 / 50).sum().item()

    assert (statistic - 23) / sqrt(46) < WIDE


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 10**6), st.sampled_from(METHODS))
def test_a_shuffle_is_a_permutation(size, seed, epoch, method):
    """Each sample stands at exactly one position."""
    found = Shuffle(method).indices(seed, epoch, 0, size, size)

    assert list(range(size)) == sorted(found.tolist())


ORDERS = st.one_of(
    st.just(Sequential()),
    st.sampled_from(METHODS).map(Shuffle),
    st.builds(Weighted, st.just([float(i % 5) for i in range(1, 18)]), num_samples=st.integers(1, 40)),
    st.just(Weighted([1.0] * 17, num_samples=11, replacement=False)),
    st.sampled_from(METHODS).map(lambda method: Infinite(Shuffle(method))),
    st.just(Infinite(Weighted([1.0] * 17, num_samples=5))),
)


@given(ORDERS, st.integers(0, 5), st.integers(0, 5), st.data())
def test_any_window_is_a_part_of_the_whole(order, seed, epoch, data):
    """`indices` of a window equals that window of all indices: positions are all that counts."""
    length = order.length(17) or 60
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(start, length))
    whole = order.indices(seed, epoch, 0, length, 17)

    assert torch.equal(whole[start:stop], order.indices(seed, epoch, start, stop, 17))
    assert torch.int64 == whole.dtype
    assert bool(((whole >= 0) & (whole < 17)).all())


def test_a_huge_set_is_shuffled_index_by_index():
    """The hashed permutation reads any window of a terabyte-sized set at once, without repetition."""
    size = 10**12 + 39
    window = Shuffle().indices(0, 0, size - 5000, size, size)

    assert 5000 == len(window.unique())
    assert bool((window < size).all())
    assert abs(window.double().mean().item() / size - 0.5) < 0.02


def test_auto_writes_small_permutations_down():
    """Up to ten million samples "auto" is "randperm", beyond it is "feistel"."""
    small, large = 1000, 10_000_001

    assert torch.equal(Shuffle().indices(1, 2, 0, 9, small), Shuffle("randperm").indices(1, 2, 0, 9, small))
    assert torch.equal(Shuffle().indices(1, 2, 0, 9, large), Shuffle("feistel").indices(1, 2, 0, 9, large))


def test_weights_are_followed():
    """With replacement each sample comes as often as its weight says, and weight zero never comes."""
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 5.0, 0.0])
    drawn = torch.cat([Weighted(weights, num_samples=4000).indices(0, epoch, 0, 4000, 6) for epoch in range(5)])
    counts = torch.bincount(drawn, minlength=6)
    expected = 20000 * weights / weights.sum()
    present = weights > 0
    statistic = ((counts - expected)[present] ** 2 / expected[present]).sum().item()

    assert [0, 0, 0] == counts[~present].tolist()
    assert (statistic - 2) / sqrt(4) < WIDE


def test_drawing_without_replacement_is_drawing_one_after_the_other():
    """The probability of an ordered pair is w_i / W times w_j / (W - w_i)."""
    weights = [1.0, 2.0, 5.0]
    order = Weighted(weights, num_samples=2, replacement=False)
    pairs = [tuple(order.indices(seed, 0, 0, 2, 3).tolist()) for seed in range(4000)]
    statistic = 0.0
    for i, j in permutations(range(3), 2):
        expected = 4000 * weights[i] / 8 * weights[j] / (8 - weights[i])
        statistic += (pairs.count((i, j)) - expected) ** 2 / expected

    assert (statistic - 5) / sqrt(10) < WIDE


@given(st.lists(st.sampled_from([0.0, 1e-300, 1.0, 1e300]), min_size=2, max_size=8).filter(any), st.integers(0, 9))
def test_a_sample_without_weight_never_comes(weights, seed):
    """Rounding in the cumulated weights never lets a weight of zero through."""
    drawn = Weighted(weights, num_samples=50).indices(seed, 0, 0, 50, len(weights))

    assert all(weights[index] > 0 for index in drawn.tolist())


def test_weights_that_cannot_be_drawn_from_are_refused():
    """Negative, all-zero and too few weights are errors that say so."""
    for weights, told in (([1.0, -1.0], "weights >= 0"), ([0.0, 0.0], "some of them > 0"), ([float("nan")], "finite")):
        with pytest.raises(ValueError, match=told):
            Weighted(weights)
    with pytest.raises(ValueError, match="expected num_samples <= 1"):
        Weighted([0.0, 3.0], replacement=False)
    with pytest.raises(ValueError, match="one weight for each of 3 samples, got 2"):
        Weighted([1.0, 3.0]).indices(0, 0, 0, 1, 3)


def test_weights_of_any_kind_make_one_value():
    """Lists, tensors and tuples of weights give equal orders, with a short text for long ones."""
    assert Weighted([1.0, 2.0]) == Weighted(torch.tensor([1.0, 2.0])) == Weighted((1, 2))
    assert "Weighted(weights=(1, 1, ... 50 numbers), num_samples=None, replacement=True)" == repr(Weighted([1] * 50))


@pytest.mark.parametrize("first", [0, 3])
def test_an_endless_order_strings_epochs_together(first):
    """Lap k of epoch e is the inner order's epoch e + k."""
    order = Infinite(Shuffle())
    laps = [Shuffle().indices(4, first + lap, 0, 7, 7) for lap in range(4)]

    assert torch.equal(torch.cat(laps), order.indices(4, first, 0, 28, 7))
    assert order.length(7) is None


def test_an_endless_order_of_an_endless_one_is_refused():
    """Only an order with an end can be repeated."""
    with pytest.raises(ValueError, match="with an end"):
        Infinite(Infinite()).indices(0, 0, 0, 1, 5)
