"""The fixed tree: in which order the shards of a global batch are added up, whatever the number of processes.

It is the binary tree of halving: a run of successive shards is the sum of its first half and its second half, the
first the larger.  A process has one node of it, and sums that by itself; then neighbours exchange their sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def halves(shards: range) -> tuple[range, range]:
    """Cut a run of shards into the two children of its node.

    >>> halves(range(0, 5))
    (range(0, 3), range(3, 5))
    """
    middle = shards.start + (len(shards) + 1) // 2
    return range(shards.start, middle), range(middle, shards.stop)


def node(shards: int, nodes: int, which: int) -> range:
    """Find the shards below one of the nodes that stand side by side at one depth.

    Args:
        shards: leaves of the tree.
        nodes: how many stand at that depth: a power of two.
        which: the node, counted from the left.

    >>> [node(6, 4, which) for which in range(4)]
    [range(0, 2), range(2, 3), range(3, 5), range(5, 6)]
    """
    below = range(shards)
    for bit in reversed(range(nodes.bit_length() - 1)):
        below = halves(below)[which >> bit & 1]
    return below


def fitting(shards: int) -> list[int]:
    """List the numbers of processes between which a tree can be divided: each gets one node, of the same depth.

    >>> fitting(6)
    [1, 2, 4]
    """
    return [2**depth for depth in range(shards.bit_length())]


def fold(shards: range, leaf: Callable[[int], T | None], join: Callable[[T, T], T]) -> T | None:
    """Add up the shards below a node; a leaf of None is empty, and changes nothing.

    >>> fold(range(4), str, "({} {})".format)
    '((0 1) (2 3))'
    """
    if len(shards) == 1:
        return leaf(shards.start)
    first, second = (fold(half, leaf, join) for half in halves(shards))
    if first is None or second is None:
        return second if first is None else first
    return join(first, second)
