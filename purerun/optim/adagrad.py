"""Adagrad, on torch's fused kernel."""

from __future__ import annotations

from functools import partial

import attrs
import torch
from torch import Tensor
from torch.optim import adagrad

from purerun.optim import tracing
from purerun.optim.layout import aligned, settle
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
    pick,
)


@attrs.frozen
class Adagrad(Optimizer):
    """Adagrad; the formula and its options are `torch.optim.Adagrad`'s (Duchi et al., JMLR 12, 2011).

    Attributes:
        lr: learning rate.
        lr_decay: how much the learning rate falls with the number of steps.
        weight_decay: L2 penalty, added to the gradient.
        initial_accumulator_value: where the sums of squares start.
        eps: what keeps the denominator from 0.
        maximize: climb instead of descend.

    >>> Adagrad(lr=0.1).hyper()
    {'lr': 0.1, 'lr_decay': 0.0, 'weight_decay': 0.0, 'eps': 1e-10}
    """

    lr: float = number(1e-2)
    lr_decay: float = number(0.0)
    weight_decay: float = number(0.0)
    initial_accumulator_value: float = number(0.0, hyper=False)
    eps: float = number(1e-10)
    maximize: bool = flag()

    def init(self, params: Params) -> Slots:
        """Make the sums of squares and the counter."""
        start = self.initial_accumulator_value
        sums = {
            name: torch.full_like(param, complex(start, start) if param.is_complex() else start)
            for name, param in params.items()
        }
        return {"step": counter(params), "sum": sums}

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
        step = slots["step"]
        step += 1
        for names, hyper in buckets:
            tensors = pick(params, names), pick(grads, names), pick(slots["sum"], names)
            laid, first = aligned(tensors), tensors[0][0]
            steps = [step if step.device == first.device else step.to(first.device)] * len(names)
            try:
                torch._fused_adagrad_(
                    *laid,
                    steps,
                    lr=hyper["lr"],
                    lr_decay=hyper["lr_decay"],
                    weight_decay=hyper["weight_decay"],
                    eps=hyper["eps"],
                    maximize=self.maximize,
                )
            except NotImplementedError:  # complex numbers, sparse gradients, some devices
                adagrad.adagrad(
                    *tensors,
                    [one - 1 for one in steps],  # this form counts by itself
                    foreach=False,
                    lr=hyper["lr"],
                    weight_decay=hyper["weight_decay"],
                    lr_decay=hyper["lr_decay"],
                    eps=hyper["eps"],
                    maximize=self.maximize,
                )
                continue
            if laid is not tensors:
                settle(tensors, laid)

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
        step = slots["step"] + 1
        new, after = tracing.each(partial(self._moved, step), params, grads, {"sum": slots["sum"]}, buckets)
        return new, {"step": step, **after}

    def _moved(self, step: Tensor, hyper: Hyper, param: Tensor, grad: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        grad = tracing.decayed(-grad if self.maximize else grad, param, hyper["weight_decay"])
        # In double precision, because torch computes the rate from a Python number of steps.
        rate = hyper["lr"] / (1 + (step.double() - 1) * hyper["lr_decay"])
        total = total.addcmul(grad, grad)
        root = tracing.root(total) + tracing.cast(hyper["eps"], param)
        return tracing.plus_ratio(param, grad, root, -rate), total
