"""Data parallel: one global batch, cut into shards, read by any number of processes."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal

import attrs
import torch

from purerun import batch as _batch
from purerun import processes, tree
from purerun.batch import BatchError
from purerun.data.place import share
from purerun.data.shards import Shards, Share
from purerun.grad import Grads, Pass
from purerun.state import Draft, StateError, lazy_clone
from purerun.step import Step
from purerun.valid import one_of, whole
from purerun.wrappers.exchange import Round, exchanged
from purerun.wrappers.packet import Packet
from purerun.wrappers.rows import Rows
from purerun.wrappers.wrapper import Wrapper


@attrs.frozen
class DataParallel(Wrapper):
    """Cut each global batch into shards, and add up what they say along one fixed tree.

    The batch is always cut into the same shards (contiguous, the first ones larger, the last ones perhaps empty), each
    with its own chance.  Whatever the number of processes, each sums the shards below its node of the tree, then
    neighbours exchange their sums; so 1, 2 and 4 processes compute the same bits, and a run may change their number at
    any checkpoint.  Each shard counts by its weight.  All processes hold the same state at all times.

    A `TrainLoop` lets each process read its own shards only; `batch_size` is that of the global batch.  A loop of your
    own gives each process the whole batch, of which it takes its shards.  Without `torch.distributed`, one process
    reads all shards.

    Attributes:
        shards: into how many parts a global batch is cut.
        buffers: what becomes of buffers that a forward pass writes (the statistics of batch norms).  "shard": each
            shard has its own, in the slot `shards`; the state's buffers are those of the first, and judged.
            "first": all begin with the state's, and those of the first shard stay.  "mean": their mean by samples
            stays, of what is no float the first's.
        reduce: "tree", or "all" for a plain all-reduce: for any number of processes up to that of the shards, without
            the promise of the same bits.

    Raises:
        ValueError: where it is used with a number of processes that does not fit.

    >>> import purerun as pr
    >>> model = torch.nn.Linear(2, 1)
    >>> step = pr.TrainStep(model, lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1))
    >>> step = pr.wrap(step, DataParallel(shards=4))
    >>> state = step(step.init(seed=0), torch.ones(6, 2))
    >>> step.share
    Share(mine=range(0, 4), shards=4)
    """

    shards: int = attrs.field(validator=whole(1))
    buffers: Literal["shard", "first", "mean"] = attrs.field(
        default="shard", kw_only=True, validator=one_of("shard", "first", "mean")
    )
    reduce: Literal["tree", "all"] = attrs.field(default="tree", kw_only=True, validator=one_of("tree", "all"))

    @property
    def slot(self) -> str:
        """Where the other shards' buffers live."""
        return "shards" if self.buffers == "shard" else ""

    def mappable(self, step: Step) -> bool:
        """Say that this cannot be mapped over: what goes to other processes are plain bytes."""
        return False

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Give each shard but the first, whose buffers are the state's, buffers of its own: shape [shards - 1, ...]."""
        return {
            name: buffer.expand(self.shards - 1, *buffer.shape).clone(memory_format=torch.contiguous_format)
            for name, buffer in draft["buffers"].items()
        }

    def share(self, step: Step) -> Share:
        """Say which shards this process reads.

        Raises:
            ValueError: the shards cannot be divided between so many processes.
        """
        return Share(self._shares()[processes.rank()], self.shards)

    def read(self, step: Step, draft: Draft, batch: Any, how: Pass) -> Grads:
        """Compute the gradients of the whole batch, of which this process reads its shards.

        Raises:
            StateError: inside of a transform of torch.func.
        """
        if torch._C._functorch.maybe_current_level() is not None:
            raise StateError(
                "expected no transform of torch.func around a step with DataParallel, whose shards are sent as plain "
                "bytes; map over and differentiate through the step inside of it"
            )
        read = self._cut(batch, self.share(step))
        busy = min(self.shards, read.samples)
        shares, each = self._shares(), self.buffers == "shard"
        turn = Round(shares, busy, self.shards if each else 1, self.reduce == "tree")
        averaged, rest = self._sorted(draft["buffers"])
        rows = Rows.empty({name: draft["buffers"][name] for name in rest}, turn.kept)
        about = f"{int(draft['iter'])} {int(draft['seed'])} {read.samples}"

        def leaf(shard: int) -> Packet | None:
            if shard >= busy:
                return None
            before = self._before(draft, shard)
            part = read.parts[shard - turn.mine.start]
            grads = step.read({**draft, "buffers": before}, part, how.at(shard))
            if shard in turn.rows(turn.mine):
                rows.put(shard, grads.buffers)
            return Packet.of(grads, {name: grads.buffers[name] for name in averaged}, _batch.size(part), about)

        packet = tree.fold(turn.mine, leaf, Packet.join)
        for shard in range(busy, turn.kept):
            rows.put(shard, self._before(draft, shard))
        if processes.count() > 1:
            packet = exchanged(packet, rows, turn, partial(self._empty, step, draft, averaged))
        assert packet is not None  # some shard has samples
        mean = packet.mean(read.samples)
        buffers = {**rows.take(0), **mean.buffers}
        buffers = {name: buffers[name] for name in draft["buffers"]}
        kept = {self.slot: rows.stacked(range(1, self.shards))} if each else {}
        return Grads(mean.grads, mean.weight, buffers, mean.metrics, mean.merges, kept)

    def note(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Remember the buffers of the other shards."""
        if self.slot in grads.kept:
            draft[self.slot].update(grads.kept[self.slot])
        step.note(draft, grads)

    def _shares(self) -> tuple[range, ...]:
        return _divided(self.shards, processes.count(), self.reduce)

    def _cut(self, batch: Any, mine: Share) -> Shards:
        if isinstance(batch, Shards):
            if batch.share != mine:
                raise BatchError(
                    f"expected a batch of {mine}, got one of {batch.share}; open the loader with step.share"
                )
            read = batch
        else:
            read = Shards.of(batch, mine)
        if not read.samples:
            raise BatchError("expected a batch with samples, got an empty one; leave it out")
        return read

    def _sorted(self, buffers: Draft) -> tuple[list[str], list[str]]:
        """Sort the buffers into those that are averaged and those that are not."""
        floats = [name for name, buffer in buffers.items() if buffer.is_floating_point() or buffer.is_complex()]
        averaged = floats if self.buffers == "mean" else []
        return averaged, [name for name in buffers if name not in averaged]

    def _before(self, draft: Draft, shard: int) -> Draft:
        """Find the buffers that a shard begins with."""
        if self.buffers == "shard" and shard:
            return {name: stack[shard - 1].clone() for name, stack in draft[self.slot].items()}
        return {name: lazy_clone(buffer) for name, buffer in draft["buffers"].items()}

    def _empty(self, step: Step, draft: Draft, averaged: list[str], terms: Any) -> Packet:
        params, buffers = draft["params"], draft["buffers"]
        return Packet.empty(
            {name: params[name] for name in step.trained}, {name: buffers[name] for name in averaged}, terms
        )


@cache
def _divided(shards: int, count: int, reduce: str) -> tuple[range, ...]:
    """List the shards of each process.

    Raises:
        ValueError: the shards cannot be divided between so many.
    """
    fitting = tree.fitting(shards) if reduce == "tree" else [*range(1, shards + 1)]
    if count not in fitting:
        raise ValueError(
            f"expected a number of processes between which {shards} shards can be divided, one of {fitting}, "
            f"got {count}; start that many, or change the number of shards"
        )
    if reduce == "tree":
        return tuple(tree.node(shards, count, process) for process in range(count))
    return tuple(range(*share(0, shards, process, count)) for process in range(count))
