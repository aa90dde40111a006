"""One batch read in several parts, and in more of them where memory runs out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from purerun.batch import cut, size
from purerun.grad import Grads, LossError, Pass
from purerun.merge import Sum, add, mean, weigh
from purerun.state import Draft, lazy_clone
from purerun.step import Step
from purerun.valid import one_of, whole
from purerun.wrappers.wrapper import Wrapper

REPORTED = "microbatches"


@attrs.frozen
class Microbatch(Wrapper):
    """Read each batch in `count` parts, one after the other, and update once.

    The gradients are those of the whole batch (means by weight; each term of the loss merges as
    it says), at the memory of one part.  Buffers go through the parts in their order, and each part
    has its own chance.  A batch of fewer samples has fewer parts; one that is not cut is read as
    it is without this wrapper.

    With `on_oom="halve"`, a pass that runs out of memory is given up whole and made again in twice as many
    parts, up to one sample each.  How many there were is reported as `microbatches`, and the state
    remembers: the next steps begin there.  Go back with `state.replace(microbatch={"parts": 1})`.  So the
    step ends where it would have ended if its batch (each shard of it, with `DataParallel`) had been cut
    into so many parts from the start.

    Attributes:
        count: parts of a batch.
        on_oom: what to do when memory runs out, "raise" or "halve".

    >>> import purerun as pr
    >>> plain = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1))
    >>> step, x = pr.wrap(plain, Microbatch(3)), torch.arange(8.0).reshape(4, 2)
    >>> whole, parts = plain(plain.init(), x), step(step.init(), x)
    >>> torch.allclose(whole["params", "weight"], parts["params", "weight"])
    True
    """

    count: int = attrs.field(default=1, validator=whole(1))
    on_oom: Literal["raise", "halve"] = attrs.field(default="raise", kw_only=True, validator=one_of("raise", "halve"))

    @property
    def slot(self) -> str:
        """Where the number of parts is remembered that memory suffices for."""
        return "microbatch" if self.on_oom == "halve" else ""

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Begin with `count` parts."""
        return {"parts": torch.tensor(self.count, device="cpu")} if self.slot else {}

    def read(self, step: Step, draft: Draft, batch: Any, how: Pass) -> Grads:
        """Read the parts of a batch.

        Raises:
            LossError: the loss reports what is reported here.
        """
        if not self.slot:
            return _read(step, draft, batch, how, self.count)
        samples = max(size(batch), 1)
        parts = min(int(draft[self.slot]["parts"]), samples)
        while (grads := _tried(step, draft, batch, how, parts, samples)) is None:
            parts = min(2 * parts, samples)
        if REPORTED in grads.metrics:
            raise LossError(
                f"expected a loss without a term {REPORTED!r}, which is reported here; call it something else"
            )
        # The most parts count, where others merge what this pass says with what they read.
        told = {REPORTED: torch.tensor(parts, device="cpu")}
        return attrs.evolve(grads, metrics={**grads.metrics, **told}, merges={**grads.merges, REPORTED: "max"})

    def settled(self, step: Step, draft: Draft, grads: Grads) -> bool:
        """Read again where some shard of the batch, perhaps in another process, needed more parts than others had."""
        return not self._remembered(draft, grads) and step.settled(draft, grads)

    def note(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Remember how many parts there were."""
        step.note(draft, grads)
        self._remembered(draft, grads)

    def _remembered(self, draft: Draft, grads: Grads) -> bool:
        """Remember the parts of a pass, if they are more than were known; say whether they are."""
        most = grads.metrics.get(REPORTED) if self.slot else None
        if most is None or int(most) <= int(draft[self.slot]["parts"]):
            return False
        draft[self.slot]["parts"] = torch.tensor(int(most), device="cpu")
        return True


def _read(step: Step, draft: Draft, batch: Any, how: Pass, parts: int) -> Grads:
    parts = min(parts, size(batch))
    if parts < 2:
        return step.read(draft, batch, how)
    total: Sum | None = None
    buffers, looks = draft["buffers"], []
    for place, part in enumerate(cut(batch, parts)):
        grads = step.read({**draft, "buffers": buffers}, part, how.at(place))
        total = weigh(grads) if total is None else add(total, grads)
        buffers = grads.buffers
        looks.append((grads.recompute, grads.weight))
        del grads  # or they would stay while the next part is read
    assert total is not None
    merged = mean(total, buffers)
    return attrs.evolve(merged, recompute=_closure(looks)) if step.closes else merged


def _closure(looks: list[tuple[Any, float | Tensor]]) -> Callable[[Mapping[str, Tensor]], tuple[Tensor, Any]]:
    """Make the function by which a line search looks at the whole batch at other parameters, part by part."""

    def look(params: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        total: Sum | None = None
        for recompute, weight in looks:
            loss, found = recompute(params)
            grads = Grads(dict(found), weight, metrics={"loss": loss.detach()})
            total = weigh(grads) if total is None else add(total, grads)
        assert total is not None
        merged = mean(total)
        return merged.metrics["loss"], merged.grads

    return look


def _tried(step: Step, draft: Draft, batch: Any, how: Pass, parts: int, samples: int) -> Grads | None:
    """Read a batch; None if memory ran out and there is another try, with all that the failed one held let go."""
    # The forward pass writes into buffers: those of a failed one must be nobody's.
    buffers = {name: lazy_clone(buffer) for name, buffer in draft["buffers"].items()}
    try:
        return _read(step, {**draft, "buffers": buffers}, batch, how, parts)
    except Exception as error:
        if parts == samples or not is_out_of_memory(error):
            error.add_note(f"while a batch of {samples} samples was read in {parts} parts")
            raise
        _let_go(error)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that an allocator has no memory left.

    torch has a class for accelerators; its allocator of the CPU raises a plain RuntimeError.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."))
    True
    >>> is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _let_go(error: BaseException | None) -> None:
    """Clear the frames that an error and its causes hold: their variables are the tensors of the failed pass."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
