"""Exchanges: how what the processes say about their shards becomes one, the same in each of them.

Which operations carry the bytes is a matter of speed alone.  Little is sent by everybody to everybody, in one message,
and added up along the tree by each.  Of much, two processes make the sum by all-reduce (of two numbers there is only
one sum), and more swap pairwise, from level to level of the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from purerun import processes, tree
from purerun.wrappers import scratch
from purerun.wrappers.packet import Packet, Terms, from_text, join_heads, to_text
from purerun.wrappers.rows import Rows

T = TypeVar("T")

# Below this many bytes in all, one message to everybody is quicker than fewer bytes in several.
_LITTLE = 512 * 1024


@attrs.frozen
class Round:
    """The shards of one global batch, and how they are divided between the processes.

    Attributes:
        shares: the shards of each process.
        busy: how many shards have samples: the first ones.
        kept: how many shards' buffers are wanted: the first ones.
        fixed: whether to add up along the tree, whatever is quickest.
    """

    shares: tuple[range, ...]
    busy: int
    kept: int
    fixed: bool

    @property
    def mine(self) -> range:
        """The shards of this process."""
        return self.shares[processes.rank()]

    def rows(self, shards: range) -> range:
        """Say which rows of buffers some shards have to give."""
        return range(min(shards.start, self.kept), min(shards.stop, self.kept))

    def is_idle(self, process: int) -> bool:
        """Say whether all shards of a process are empty, so that it has nothing to say."""
        return self.shares[process].start >= self.busy


def exchanged(packet: Packet | None, rows: Rows, turn: Round, empty: Callable[[Terms], Packet]) -> Packet:
    """Make the packet of all shards, and fill the rows of the others.

    Args:
        packet: of this process; None if its shards are empty.
        rows: buffers of its shards.
        turn: the batch.
        empty: makes a packet of given terms, with nothing in it.

    Raises:
        ProcessLost: another process has ended.
        LossError: what the others have does not belong together with this.
    """
    count = len(turn.shares)
    # The last process has the last shards.  That it is idle all know from the batch's size, and only then it is told.
    if turn.is_idle(count - 1):
        terms = from_text(processes.told(to_text(packet.terms) if packet is not None else ""))
        packet = packet or empty(terms)
    assert packet is not None  # it has samples
    if packet.memory.nbytes * count <= _LITTLE:
        return _gathered(packet, rows, turn)
    if turn.fixed and count > 2:
        return _pairwise(packet, rows, turn)
    return _reduced(packet, rows, turn)


def _gathered(packet: Packet, rows: Rows, turn: Round) -> Packet:
    parts = _everybodys(packet.memory, rows, turn)
    return _folded(turn, lambda process: packet.over(parts[process]), Packet.join)


def _reduced(packet: Packet, rows: Rows, turn: Round) -> Packet:
    if turn.is_idle(processes.rank()):
        packet.memory.zero_()
    with processes.adding(each.sums for each in (*packet.grads, *packet.buffers)):
        heads = [part.view(packet.head.dtype) for part in _everybodys(packet.head.view(torch.uint8), rows, turn)]
    packet.head.copy_(_folded(turn, heads.__getitem__, lambda first, second: join_heads(first, second, packet.terms)))
    return packet


def _pairwise(packet: Packet, rows: Rows, turn: Round) -> Packet:
    """Swap with a neighbour at each level of the tree; both add the same two packets, the left one first."""
    count, rank = processes.count(), processes.rank()
    shards = turn.shares[-1].stop
    for level in range(count.bit_length() - 1):
        which = rank >> level
        here, there = (tree.node(shards, count >> level, node) for node in (which, which ^ 1))
        other = packet.over(scratch.memory(packet.memory.nbytes, packet.memory.device))
        gives, takes = (_of(rows, turn.rows(each)) for each in (here, there))
        processes.swap(rank ^ (1 << level), give=[packet.memory, gives], take=[other.memory, takes])
        left, right = (other, packet) if which & 1 else (packet, other)
        packet = left.join(right) if max(here.start, there.start) < turn.busy else left
    return packet


def _folded(turn: Round, of: Callable[[int], T], join: Callable[[T, T], T]) -> T:
    every = range(len(turn.shares))
    total = tree.fold(every, lambda process: None if turn.is_idle(process) else of(process), join)
    assert total is not None  # some shard has samples
    return total


def _everybodys(said: Tensor, rows: Rows, turn: Round) -> list[Tensor]:
    """Send bytes, and beside them the rows, from everybody to everybody; fill the rows, and list the bytes."""
    given = [turn.rows(share) for share in turn.shares]
    width = rows.bytes.shape[1]
    most = max(map(len, given)) * width
    message = torch.empty(said.nbytes + most + -most % 64, dtype=torch.uint8, device=said.device)
    message[: said.nbytes] = said
    mine = _of(rows, turn.rows(turn.mine)).flatten()
    message[said.nbytes :][: mine.nbytes] = mine
    everything = processes.gather(message)
    for part, which in zip(everything, given, strict=True):
        _of(rows, which).copy_(part[said.nbytes :][: len(which) * width].view(len(which), width))
    return [part[: said.nbytes] for part in everything]


def _of(rows: Rows, which: range) -> Tensor:
    return rows.bytes[which.start : which.stop]
