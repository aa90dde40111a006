"""Stochastic gradient descent with momentum, on torch's fused kernel."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from purerun.optim.optimizer import Bucket, Optimizer, Params, Slots, number, pick, zeros


@attrs.frozen
class SGD(Optimizer):
    """Stochastic gradient descent; the formula and its options are `torch.optim.SGD`'s.

    Attributes:
        lr: learning rate.
        momentum: how much of the last direction is kept; 0 makes no slot.
        dampening: how much less of the gradient enters the momentum.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: look ahead along the momentum.
        maximize: climb instead of descend.

    >>> SGD(lr=0.1, momentum=0.9)
    SGD(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False, groups=())
    """

    lr: float = number(1e-3)
    momentum: float = number(0.0)
    dampening: float = number(0.0, check=lambda value: True)
    weight_decay: float = number(0.0)
    nesterov: bool = False
    maximize: bool = False

    def __attrs_post_init__(self) -> None:
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("expected momentum > 0 and dampening == 0 with nesterov=True; change one of the three")

    def init(self, params: Params) -> Slots:
        """Make the momentum, and the counter that tells the first step (which takes the gradient undamped)."""
        if not self.momentum:
            return {}
        return {"step": torch.zeros((), dtype=torch.int64), "momentum_buffer": zeros(params)}

    def write(self, params: Params, grads: Params, slots: Slots, buckets: Sequence[Bucket]) -> None:
        """Write one update in place: one fused kernel call a bucket."""
        first = bool(slots) and not slots["step"].item()
        for names, hyper in buckets:
            torch._fused_sgd_(
                pick(params, names),
                pick(grads, names),
                pick(slots["momentum_buffer"], names) if slots else [],
                weight_decay=hyper["weight_decay"],
                momentum=hyper["momentum"] if slots else 0.0,
                lr=hyper["lr"],
                dampening=hyper["dampening"],
                nesterov=self.nesterov,
                maximize=self.maximize,
                is_first_step=first,
            )
        if slots:
            slots["step"] += 1
