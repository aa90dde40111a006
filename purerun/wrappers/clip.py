"""Gradients clipped before an update, and their norm on both sides of it."""

from __future__ import annotations

from fnmatch import fnmatchcase

import attrs
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from purerun.bind import is_abstract
from purerun.grad import Grads
from purerun.optim import ClipAdaptive, ClipNorm, ClipValue, Transform
from purerun.optim.optimizer import Params
from purerun.owned import unshared
from purerun.state import Draft, lazy_clone
from purerun.step import Step
from purerun.valid import floating, refuse, several
from purerun.wrappers.wrapper import Wrapper


@attrs.frozen
class Clip(Wrapper):
    """Clip the gradients by their norm, by value, or by the norms of the weights that they move.

    By norm it equals `torch.nn.utils.clip_grad_norm_` bit for bit, by value `clip_grad_value_`; adaptive
    is `pr.optim.ClipAdaptive`.  The norm of all gradients before and after is reported as `grad_norm` and
    `grad_norm_clipped`, without waiting for the device.  In an iteration that updates nothing they are those of
    the last update, which the slot `clip` keeps; 0 before the first.

    A threshold that is scheduled or swept is a hyper-parameter of the optimizer:
    `pr.optim.chain(clip=pr.optim.ClipNorm(1.0), sgd=pr.optim.SGD(lr=0.1))`.

    Attributes:
        norm: the largest norm of all gradients together that is left alone.
        value: the largest magnitude of an element that is left alone.
        adaptive: the largest norm of a unit's gradient that is left alone, as a part of that of its weights.
        skip: with `adaptive`, glob patterns of parameters that are left alone.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> step = pr.wrap(step, Clip(norm=1.0))
    >>> state = step(step.init(), torch.tensor([[2.0, 2.0]]))
    >>> float(state["metrics", "grad_norm"]), round(float(state["metrics", "grad_norm_clipped"]), 4)
    (3.0, 1.0)
    """

    norm: float | None = attrs.field(default=None, converter=floating)
    value: float | None = attrs.field(default=None, kw_only=True, converter=floating)
    adaptive: float | None = attrs.field(default=None, kw_only=True, converter=floating)
    skip: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=several)

    def __attrs_post_init__(self) -> None:
        given = [name for name in ("norm", "value", "adaptive") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(f"expected Clip(norm=...), Clip(value=...) or Clip(adaptive=...), got {got}")
        if self.skip and self.adaptive is None:
            raise ValueError(f"expected `skip` with Clip(adaptive=...) only, got it with {given[0]}: {self.skip}")
        limit = getattr(self, given[0])
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:
            raise refuse(self, given[0], "a number of at least 0", limit)
        for pattern in self.skip:
            if not isinstance(pattern, str):
                raise refuse(self, "skip", "glob patterns of names", pattern)
        _ = self.transform  # has bounds of its own

    def check(self, step: Step) -> None:
        """Refuse a pattern that leaves nothing alone.

        Raises:
            ValueError: it matches no parameter.
        """
        for pattern in self.skip:
            if not any(fnmatchcase(name, pattern) for name in step.trained):
                raise refuse(self, "skip", f"patterns of the names {list(step.trained[:8])}", pattern)

    @property
    def kind(self) -> str:
        """By value is another kind: it makes infinities finite."""
        return "Clip" if self.value is None else "Clip by value"

    @property
    def transform(self) -> Transform:
        """The clipping as a pure function of gradients."""
        if self.norm is not None:
            return ClipNorm(self.norm)
        if self.value is not None:
            return ClipValue(self.value)
        assert self.adaptive is not None
        return ClipAdaptive(self.adaptive, skip=self.skip)

    @property
    def slot(self) -> str:
        """Where the norms of the last update live."""
        return "clip"

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Begin with norms of 0."""
        return {name: torch.zeros((), dtype=torch.float32, device=step.device) for name in ("before", "after")}

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Write the inner update of the clipped gradients, and keep their norms."""
        # In one order, whoever brought them: a window that was loaded may have another one, and so other sums.
        ordered = {name: grads.grads[name] for name in step.trained}
        clipped, before, after = self._clipped(draft["params"], ordered)
        draft[self.slot] = {"before": before.to(torch.float32), "after": after.to(torch.float32)}
        step.write(draft, attrs.evolve(grads, grads=clipped))

    def note(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Report the norms."""
        step.note(draft, grads)
        start = f"{step.slot}." if step.slot else ""
        for name, norm in (("grad_norm", "before"), ("grad_norm_clipped", "after")):
            draft["metrics"][start + name] = lazy_clone(draft[self.slot][norm])

    def _clipped(self, params: Params, grads: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Clip; with the norms before and after."""
        if any(map(is_abstract, grads.values())):
            return self._traced(params, grads)
        # In place where that may be, as torch's own: other memory would cost more than the arithmetic.
        transform, before, own = self.transform, get_total_norm(grads.values()), unshared([*grads.values()])
        if isinstance(transform, ClipNorm):
            factor = transform.factor(before, transform.max_norm)
            torch._foreach_mul_(own, factor)
            return dict(zip(grads, own, strict=True)), before, before * factor
        if isinstance(transform, ClipValue):
            transform.limit_(own, transform.value)
            return dict(zip(grads, own, strict=True)), before, get_total_norm(own)
        clipped = transform.apply(params, grads, {}, transform.hyper(), traced=False).grads
        return clipped, before, get_total_norm(clipped.values())

    def _traced(self, params: Params, grads: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        clipped = self.transform.apply(params, grads, {}, self.transform.hyper(), traced=True).grads
        return clipped, _norm(grads), _norm(clipped)


def _norm(grads: Params) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads.values()]))
