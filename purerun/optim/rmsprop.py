"""RMSprop, on torch's foreach kernels (it has no fused one)."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from torch.optim import rmsprop

from purerun.optim import tracing
from purerun.optim.optimizer import (
    Buckets,
    Closure,
    Hyper,
    Optimizer,
    Params,
    Report,
    Slots,
    TracedBuckets,
    counter,
    flag,
    number,
    numbers,
    pick,
    zeros,
)


@attrs.frozen
class RMSprop(Optimizer):
    """RMSprop; the formula and its options are `torch.optim.RMSprop`'s (Hinton, lecture 6e, 2012).

    Attributes:
        lr: learning rate.
        alpha: how much of the running mean of squares is kept.
        eps: what keeps the denominator from 0.
        weight_decay: L2 penalty, added to the gradient.
        momentum: how much of the last direction is kept; 0 makes no slot and no hyper-parameter of it.
        centered: divide by the variance instead of the mean of squares (Graves, arXiv:1308.0850).
        maximize: climb instead of descend.

    >>> RMSprop(centered=True).hyper()
    {'lr': 0.01, 'alpha': 0.99, 'eps': 1e-08, 'weight_decay': 0.0}
    """

    lr: float = number(1e-2)
    alpha: float = number(0.99)
    eps: float = number(1e-8)
    weight_decay: float = number(0.0)
    momentum: float = number(0.0)
    centered: bool = flag()
    maximize: bool = flag()

    def hyper(self) -> dict[str, float]:
        """List the hyper-parameters: without momentum, only what has an effect."""
        return {name: value for name, value in numbers(self).items() if self.momentum or name != "momentum"}

    def init(self, params: Params) -> Slots:
        """Make the running means, the momentum and the counter."""
        return {"step": counter(params), **{name: zeros(params) for name in self._names()}}

    def write(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        buckets: Buckets,
        *,
        report: Report | None = None,
        closure: Closure | None = None,
    ) -> None:
        """Write one update in place: a handful of foreach calls a bucket."""
        slots["step"] += 1
        for names, hyper in buckets:
            tensors = pick(params, names)
            rmsprop.rmsprop(
                tensors,
                pick(grads, names),
                pick(slots["square_avg"], names),
                pick(slots["grad_avg"], names) if self.centered else [],
                pick(slots["momentum_buffer"], names) if self.momentum else [],
                [torch.zeros(())] * len(names),  # counted up by torch, and read by nobody
                foreach=True,
                maximize=self.maximize,
                has_complex=tensors[0].is_complex(),
                lr=hyper["lr"],
                alpha=hyper["alpha"],
                eps=hyper["eps"],
                weight_decay=hyper["weight_decay"],
                momentum=hyper["momentum"] if self.momentum else 0.0,
                centered=self.centered,
            )

    def trace(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        buckets: TracedBuckets,
        *,
        report: Report | None = None,
    ) -> tuple[dict[str, Tensor], Slots]:
        """Make the parameters and slots after one update, out of place."""
        means = {name: slots[name] for name in self._names()}
        new, after = tracing.each(self._moved, params, grads, means, buckets)
        return new, {"step": slots["step"] + 1, **after}

    def _names(self) -> list[str]:
        chosen = {"square_avg": True, "grad_avg": self.centered, "momentum_buffer": bool(self.momentum)}
        return [name for name, there in chosen.items() if there]

    def _moved(self, hyper: Hyper, param: Tensor, grad: Tensor, square: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(self._names()[1:], others, strict=True))
        grad = tracing.decayed(-grad if self.maximize else grad, param, hyper["weight_decay"])
        square = tracing.mean_square(square, grad, hyper["alpha"])
        new, under = {}, square
        if self.centered:
            mean = new["grad_avg"] = tracing.mean(old["grad_avg"], grad, hyper["alpha"])
            under = square.addcmul(mean, mean, value=-1)
        root = tracing.root(under) + tracing.cast(hyper["eps"], param)
        if not self.momentum:
            return tracing.plus_ratio(param, grad, root, -hyper["lr"]), square, *new.values()
        still, momentum = old["momentum_buffer"], hyper["momentum"]
        buffer = tracing.times(still, momentum).addcdiv(grad, root)
        # As torch's: without momentum the buffer rests.
        new["momentum_buffer"] = tracing.unless_zero(momentum, buffer, still)
        return tracing.plus(param, buffer, -hyper["lr"]), square, *new.values()
