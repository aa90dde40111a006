"""Adam and AdamW, on torch's fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.optim import adam

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
    zeros,
)
from purerun.valid import floating


def _betas(owner: Any, _attribute: Any, betas: Any) -> None:
    if not isinstance(betas, tuple) or len(betas) != 2 or not all(isinstance(beta, float) for beta in betas):
        raise TypeError(f"expected {type(owner).__name__}.betas to be two floats, got {betas!r}")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"{type(owner).__name__}.betas={betas!r} is out of range; both lie in [0, 1)")


def _pair(given: tuple[float, float]) -> tuple[float, float]:
    # Whatever else is given is left to the validator.
    return tuple(map(floating, given)) if isinstance(given, list | tuple) else given  # type: ignore[return-value]


@attrs.frozen
class Adam(Optimizer):
    """Adam; the formula and its options are `torch.optim.Adam`'s (Kingma & Ba, arXiv:1412.6980).

    Attributes:
        lr: learning rate.
        betas: how much of the running means of the gradient and of its square is kept; the
            hyper-parameters `beta1` and `beta2`.
        eps: what keeps the denominator from 0.
        weight_decay: L2 penalty, added to the gradient.
        amsgrad: divide by the largest mean of squares so far (Reddi et al., arXiv:1904.09237).
        maximize: climb instead of descend.

    >>> Adam(betas=(0.9, 0.95)).hyper()
    {'lr': 0.001, 'beta1': 0.9, 'beta2': 0.95, 'eps': 1e-08, 'weight_decay': 0.0}
    """

    lr: float = number(1e-3)
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.999), converter=_pair, validator=_betas)
    eps: float = number(1e-8)
    weight_decay: float = number(0.0)
    amsgrad: bool = flag()
    maximize: bool = flag()

    def hyper(self) -> dict[str, float]:
        """List the hyper-parameters: `lr`, `beta1`, `beta2`, `eps`, `weight_decay`."""
        return _hyper(self)

    def init(self, params: Params) -> Slots:
        """Make the running means and the counter."""
        return _init(self, params)

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
        _write(self, torch._fused_adam_, params, grads, slots, buckets)

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
        return _trace(self, _coupled, params, grads, slots, buckets)


@attrs.frozen
class AdamW(Optimizer):
    """Adam with decoupled weight decay; `torch.optim.AdamW`'s (Loshchilov & Hutter, arXiv:1711.05101).

    Attributes:
        lr: learning rate.
        betas: how much of the running means of the gradient and of its square is kept; the
            hyper-parameters `beta1` and `beta2`.
        eps: what keeps the denominator from 0.
        weight_decay: how much the parameters shrink a step, times the learning rate.
        amsgrad: divide by the largest mean of squares so far (Reddi et al., arXiv:1904.09237).
        maximize: climb instead of descend.

    >>> AdamW(lr=3e-4)
    AdamW(groups=(), lr=0.0003, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False, maximize=False)
    """

    lr: float = number(1e-3)
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.999), converter=_pair, validator=_betas)
    eps: float = number(1e-8)
    weight_decay: float = number(1e-2)
    amsgrad: bool = flag()
    maximize: bool = flag()

    def hyper(self) -> dict[str, float]:
        """List the hyper-parameters: `lr`, `beta1`, `beta2`, `eps`, `weight_decay`."""
        return _hyper(self)

    def init(self, params: Params) -> Slots:
        """Make the running means and the counter."""
        return _init(self, params)

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
        _write(self, torch._fused_adamw_, params, grads, slots, buckets)

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
        return _trace(self, _decoupled, params, grads, slots, buckets)


def _hyper(optimizer: Adam | AdamW) -> dict[str, float]:
    beta1, beta2 = optimizer.betas
    return {
        "lr": float(optimizer.lr),
        "beta1": beta1,
        "beta2": beta2,
        "eps": float(optimizer.eps),
        "weight_decay": float(optimizer.weight_decay),
    }


def _init(optimizer: Adam | AdamW, params: Params) -> Slots:
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if optimizer.amsgrad else ("exp_avg", "exp_avg_sq")
    return {"step": counter(params), **{name: zeros(params) for name in names}}


def _write(
    optimizer: Adam | AdamW,
    kernel: Callable[..., None],
    params: Params,
    grads: Params,
    slots: Slots,
    buckets: Buckets,
) -> None:
    step = slots["step"]
    step += 1
    for names, hyper in buckets:
        tensors = (
            pick(params, names),
            pick(grads, names),
            pick(slots["exp_avg"], names),
            pick(slots["exp_avg_sq"], names),
            pick(slots["max_exp_avg_sq"], names) if optimizer.amsgrad else [],
        )
        laid, device = aligned(tensors), tensors[0][0].device
        steps = [step if step.device == device else step.to(device)] * len(names)
        try:
            kernel(
                *laid,
                steps,
                amsgrad=optimizer.amsgrad,
                lr=hyper["lr"],
                beta1=hyper["beta1"],
                beta2=hyper["beta2"],
                weight_decay=hyper["weight_decay"],
                eps=hyper["eps"],
                maximize=optimizer.maximize,
            )
        except NotImplementedError:  # complex numbers, some devices
            _single(optimizer, tensors, steps, hyper)
            continue
        if laid is not tensors:
            settle(tensors, laid)


def _single(
    optimizer: Adam | AdamW, tensors: tuple[list[Tensor], ...], steps: list[Tensor], hyper: Mapping[str, float]
) -> None:
    params, grads, means, squares, largest = tensors
    adam.adam(
        params,
        grads,
        means,
        squares,
        largest,
        [step - 1 for step in steps],  # this form counts by itself
        foreach=False,
        has_complex=params[0].is_complex(),
        decoupled_weight_decay=isinstance(optimizer, AdamW),
        amsgrad=optimizer.amsgrad,
        beta1=hyper["beta1"],
        beta2=hyper["beta2"],
        lr=hyper["lr"],
        weight_decay=hyper["weight_decay"],
        eps=hyper["eps"],
        maximize=optimizer.maximize,
    )


Decay = Callable[[Hyper, Tensor, Tensor], tuple[Tensor, Tensor]]
"""How the weights decay: (hyper, param, grad) -> (param, grad)."""


def _coupled(hyper: Hyper, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return param, tracing.decayed(grad, param, hyper["weight_decay"])


def _decoupled(hyper: Hyper, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return tracing.times(param, 1 - hyper["lr"] * hyper["weight_decay"]), grad


def _trace(
    optimizer: Adam | AdamW, decay: Decay, params: Params, grads: Params, slots: Slots, buckets: TracedBuckets
) -> tuple[dict[str, Tensor], Slots]:
    step = slots["step"] + 1
    means = {name: slot for name, slot in slots.items() if name != "step"}

    def first(hyper: Hyper, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return decay(hyper, param, -grad if optimizer.maximize else grad)

    new, after = tracing.each(partial(_moved, step), params, grads, means, buckets, first=first)
    return new, {"step": step, **after}


def _moved(
    step: Tensor,
    hyper: Hyper,
    param: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    *largest: Tensor,
) -> tuple[Tensor, ...]:
    mean = tracing.mean(mean, grad, hyper["beta1"])
    square = tracing.mean_square(square, grad, hyper["beta2"])
    largest = tuple(torch.maximum(old, square) for old in largest)
    size = -hyper["lr"] / (1 - hyper["beta1"] ** step)
    bias = (1 - hyper["beta2"] ** step).sqrt()
    (under,) = largest or (square,)
    # The step size is folded into the denominator, as torch does: one pass less over the parameter.
    denominator = tracing.root(under) / tracing.cast(bias * size, param) + tracing.cast(hyper["eps"] / size, param)
    return param.addcdiv(mean, denominator), mean, square, *largest
