"""The fixed tree: a division between processes changes nothing about the sum."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from purerun import tree


def paired(left, right):
    """Write a sum down, with its order."""
    return f"({left} {right})"


@given(st.integers(1, 40), st.data())
def test_the_order_of_the_sum_does_not_depend_on_the_processes(shards, data):
    """Each sums its node; then neighbours exchange, level by level, and all have the same."""
    count = data.draw(st.sampled_from(tree.fitting(shards)))
    busy = data.draw(st.integers(1, shards))

    def leaf(shard):
        return str(shard) if shard < busy else None

    sums = [tree.fold(tree.node(shards, count, rank), leaf, paired) for rank in range(count)]
    distance = 1
    while distance < count:
        pairs = [(sums[rank & ~distance], sums[rank | distance]) for rank in range(count)]
        sums = [left if right is None else paired(left, right) for left, right in pairs]
        distance *= 2

    assert {tree.fold(range(shards), leaf, paired)} == set(sums)


@given(st.integers(1, 60), st.data())
def test_nodes_side_by_side_are_all_the_shards(shards, data):
    """In order, none empty, of sizes that differ by one at most."""
    count = data.draw(st.sampled_from(tree.fitting(shards)))
    nodes = [tree.node(shards, count, which) for which in range(count)]
    sizes = [len(node) for node in nodes]

    assert list(range(shards)) == [shard for node in nodes for shard in node]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.data())
def test_sums_of_floats_are_the_same_bits(numbers, data):
    """What the order is for."""
    count = data.draw(st.sampled_from(tree.fitting(len(numbers))))
    sums = [
        tree.fold(tree.node(len(numbers), count, rank), numbers.__getitem__, float.__add__) for rank in range(count)
    ]

    assert tree.fold(range(len(numbers)), numbers.__getitem__, float.__add__) == tree.fold(
        range(count), sums.__getitem__, float.__add__
    )
