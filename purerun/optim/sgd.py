"""Stochastic gradient descent with momentum, on torch's fused kernel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from operator import or_

import attrs
import torch
from torch import Tensor
from torch.optim import sgd

from purerun.optim import tracing
from purerun.optim.layout import aligned, settle
from purerun.optim.optimizer import (
    Bucket,
    Buckets,
    Closure,
    Hyper,
    Optimizer,
    Params,
    Report,
    Slots,
    TracedBuckets,
    flag,
    number,
    numbers,
    pick,
    zeros,
)


@attrs.frozen
class SGD(Optimizer):
    """Stochastic gradient descent; the formula and its options are `torch.optim.SGD`'s.

    Attributes:
        lr: learning rate.
        momentum: how much of the last direction is kept; 0 makes no slot and no hyper-parameter of it, so a
            momentum that is to change from 0 later, or is swept over, starts at a small number instead.
        dampening: how much less of the gradient enters the momentum.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: look ahead along the momentum.
        maximize: climb instead of descend.

    >>> SGD(lr=0.1, momentum=0.9)
    SGD(groups=(), lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False)
    """

    lr: float = number(1e-3)
    momentum: float = number(0.0)
    dampening: float = number(0.0, check=lambda value: True)
    weight_decay: float = number(0.0)
    nesterov: bool = flag()
    maximize: bool = flag()

    def __attrs_post_init__(self) -> None:
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("expected momentum > 0 and dampening == 0 with nesterov=True; change one of the three")

    def hyper(self) -> dict[str, float]:
        """List the hyper-parameters: without momentum, only what has an effect."""
        without = () if self.momentum else ("momentum", "dampening")
        return {name: value for name, value in numbers(self).items() if name not in without}

    def init(self, params: Params) -> Slots:
        """Make the momentum, and the counter of its steps (the first takes the gradient undamped)."""
        if not self.momentum:
            return {}
        return {"step": torch.zeros((), dtype=torch.int64), "momentum_buffer": zeros(params)}

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
        """Write one update in place: one fused kernel call a bucket."""
        # A slot that is not there is an error, not a run without momentum.
        buffers = slots["momentum_buffer"] if self.momentum else None
        first, moved = buffers is not None and not slots["step"].item(), False
        for names, hyper in buckets:
            tensors = (
                pick(params, names),
                pick(grads, names),
                # As torch's: without momentum the buffers rest.
                pick(buffers, names) if buffers and hyper["momentum"] else [],
            )
            momentum, dampening = (hyper["momentum"], hyper["dampening"]) if buffers else (0.0, 0.0)
            moved = moved or bool(tensors[2])
            if _misread(tensors[0][0]):
                self._single(*tensors, hyper, first=first)
                continue
            laid = aligned(tensors)
            try:
                torch._fused_sgd_(
                    *laid,
                    weight_decay=hyper["weight_decay"],
                    momentum=momentum,
                    lr=hyper["lr"],
                    dampening=dampening,
                    nesterov=self.nesterov,
                    maximize=self.maximize,
                    is_first_step=first,
                )
            except NotImplementedError:  # complex numbers, sparse gradients, some devices
                self._single(*tensors, hyper, first=first)
                continue
            if laid is not tensors:
                settle(tensors, laid)
        if moved:
            slots["step"] += 1

    def _single(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor],
        hyper: Mapping[str, float],
        *,
        first: bool,
    ) -> None:
        bare = first or not buffers
        made: list[Tensor | None] = [None] * len(params) if bare else [*buffers]
        sgd.sgd(
            params,
            grads,
            made,
            foreach=False,
            weight_decay=hyper["weight_decay"],
            momentum=hyper["momentum"] if buffers else 0.0,
            lr=hyper["lr"],
            dampening=hyper["dampening"] if buffers else 0.0,
            nesterov=self.nesterov,
            maximize=self.maximize,
        )
        for buffer, new in zip(buffers, made, strict=False):
            if first and new is not None:
                buffer.copy_(new)

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
        # Once a bucket, not once a parameter: under `vmap` a number costs as much as a matrix.
        ready = [Bucket(names, self._ready(hyper, params[names[0]])) for names, hyper in buckets]
        if not self.momentum:
            return tracing.each(self._plain, params, grads, {}, ready, pairs=False)
        formula = partial(self._moving, tracing.settled(slots["step"] == 0))
        kept = {"momentum_buffer": slots["momentum_buffer"]}
        new, after = tracing.each(formula, params, grads, kept, ready, pairs=False)
        moved = reduce(or_, [hyper["momentum"] != 0 for _, hyper in buckets])
        return new, {"step": slots["step"] + moved, **after}

    def _ready(self, hyper: Hyper, like: Tensor) -> Hyper:
        """Work out the numbers of an update in the dtype and on the device of its parameters."""
        plain = {"weight_decay": tracing.cast(hyper["weight_decay"], like), "down": tracing.cast(-hyper["lr"], like)}
        if not self.momentum:
            return plain
        return {
            **plain,
            "momentum": tracing.cast(hyper["momentum"], like),
            "moves": tracing.settled(hyper["momentum"] != 0),
            "undamped": tracing.cast(1 - hyper["dampening"], like),
        }

    def _plain(self, hyper: Hyper, param: Tensor, grad: Tensor) -> tuple[Tensor]:
        grad = tracing.decayed(-grad if self.maximize else grad, param, hyper["weight_decay"])
        return (tracing.plus(param, grad, hyper["down"]),)

    def _moving(
        self, first: tracing.Condition, hyper: Hyper, param: Tensor, grad: Tensor, buffer: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad = tracing.decayed(-grad if self.maximize else grad, param, hyper["weight_decay"])
        momentum, moves = hyper["momentum"], hyper["moves"]
        damped = tracing.plus(tracing.times(buffer, momentum), grad, hyper["undamped"])
        # Not torch's own first step, which detaches the gradient: nothing could be differentiated through it.
        new = tracing.where(first, grad, damped)
        ahead = tracing.plus(grad, new, momentum) if self.nesterov else new
        direction = tracing.where(moves, ahead, grad)
        return tracing.plus(param, direction, hyper["down"]), tracing.where(moves, new, buffer)


def _misread(param: Tensor) -> bool:
    """Tell whether torch's fused kernel would go wrong.

    For 16 bits on the CPU, that of torch 2.13 leaves parameters of 16 elements and more as they are, and reads
    past their end.
    """
    return param.is_cpu and param.dtype in (torch.bfloat16, torch.float16)
