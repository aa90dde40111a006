"""The optimizers that every law is run over, each beside the optimizer of torch that it must equal.

An optimizer of your own is one more row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import attrs
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from purerun.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    ClipNorm,
    ClipValue,
    Ndim,
    Optimizer,
    RMSprop,
    Torch,
    chain,
    split,
)

MIXED = {"scale": (), "bias": (5,), "weight": (3, 4), "filter": (2, 3, 2, 2), "more.weight": (17, 5)}
"""Parameters of many shapes, among them one that no vector register fits."""
MATRICES = {"weight": (3, 4), "wide.weight": (4, 9)}
"""Parameters for optimizers that take nothing but matrices."""


class Oracle(Protocol):
    """What moves parameters by their `.grad`, as an optimizer of torch does."""

    def step(self, closure: Any = None) -> Any:
        """Write one update into the parameters."""


Maker: TypeAlias = Callable[[Sequence[Any]], Oracle]
"""Makes the oracle of some parameters, or of parameter groups."""


@attrs.frozen
class OptimizerCase:
    """An optimizer and what is known of it.

    Attributes:
        optimizer: the value.
        oracle: makes the optimizer of torch that it must equal bit for bit.
        shapes: parameters that it can move: name -> shape.
        dtypes: what the oracle works in.
        traced: whether it has a form to map and differentiate.
        sparse: whether it wants sparse gradients.
    """

    optimizer: Optimizer
    oracle: Maker
    shapes: Mapping[str, tuple[int, ...]] = attrs.field(default=MIXED)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16)
    traced: bool = False
    sparse: bool = False

    def params(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Make parameters to start from; the same ones every time.

        >>> OPTIMIZERS["sgd"].params()["scale"]
        tensor(0.5000)
        """
        return {
            name: (torch.arange(1, torch.Size(shape).numel() + 1) * 0.7).cos().sub(0.264842).reshape(shape).to(dtype)
            for name, shape in self.shapes.items()
        }

    def evaluate(self, params: Mapping[str, Tensor], turn: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute a loss and its gradients; some gradients are 0.0, and some -0.0.

        Args:
            params: where.
            turn: which batch, so to say.
        """
        losses, grads = [], {}
        for name, param in params.items():
            place = list(self.shapes).index(name)
            places = torch.arange(param.numel(), dtype=torch.float64).reshape(param.shape)
            target, steepness = (places + turn + place).sin(), (places % 7 + 1) / 4
            gap = (param.double() - target) * (places % 3 != 1)
            losses.append((steepness * gap.square()).sum())
            grads[name] = (2 * steepness * gap).to(param.dtype)
        grads = {name: grad.to_sparse(1) for name, grad in grads.items()} if self.sparse else grads
        return torch.stack(losses).sum(), grads


@attrs.frozen
class _Clipped:
    clip: Callable[[Sequence[Tensor]], Any]
    params: Sequence[Tensor]
    inner: torch.optim.Optimizer

    def step(self, closure: Any = None) -> None:
        self.clip(self.params)
        self.inner.step()


@attrs.frozen
class _Several:
    inner: Sequence[torch.optim.Optimizer]

    def step(self, closure: Any = None) -> None:
        for optimizer in self.inner:
            optimizer.step()


def _native(optimizer: Optimizer, cls: type[torch.optim.Optimizer], **options: Any) -> OptimizerCase:
    """Make a row of an optimizer of our own: same arguments, torch's fused or foreach kernel."""

    def oracle(params: Any) -> torch.optim.Optimizer:
        kernel: dict[str, Any] = _kernel(cls, params)
        return cls(params, **options, **kernel)

    return OptimizerCase(optimizer, oracle, traced=True)


def _kernel(cls: type[torch.optim.Optimizer], params: Any) -> dict[str, bool]:
    """Choose the implementation of torch that ours is: the fused one, where there is one that computes right."""
    if cls is torch.optim.RMSprop:
        return {"foreach": True}
    first = params[0]["params"][0] if isinstance(params[0], dict) else params[0]
    # See purerun.optim.sgd: the fused SGD of torch 2.13 is wrong for 16 bits.
    wrong = cls is torch.optim.SGD and first.dtype in (torch.bfloat16, torch.float16)
    return {"foreach": False} if wrong else {"fused": True}


def _wrapped(cls: type[torch.optim.Optimizer], **options: Any) -> OptimizerCase:
    """Make a row of an optimizer of torch made pure."""
    return OptimizerCase(Torch(cls, **options), lambda params: cls(params, **options))


_EXACT = (torch.float32, torch.float64)

OPTIMIZERS: Mapping[str, OptimizerCase] = {
    "sgd": _native(SGD(lr=0.1), torch.optim.SGD, lr=0.1),
    "sgd, momentum": _native(SGD(lr=0.1, momentum=0.9), torch.optim.SGD, lr=0.1, momentum=0.9),
    "sgd, dampening, decay, maximize": _native(
        SGD(lr=0.03, momentum=0.9, dampening=0.3, weight_decay=0.01, maximize=True),
        torch.optim.SGD,
        lr=0.03,
        momentum=0.9,
        dampening=0.3,
        weight_decay=0.01,
        maximize=True,
    ),
    "sgd, nesterov, decay": _native(
        SGD(lr=0.1, momentum=0.8, weight_decay=0.1, nesterov=True),
        torch.optim.SGD,
        lr=0.1,
        momentum=0.8,
        weight_decay=0.1,
        nesterov=True,
    ),
    "adam": _native(Adam(lr=0.01), torch.optim.Adam, lr=0.01),
    "adam, amsgrad, decay": _native(
        Adam(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, amsgrad=True),
        torch.optim.Adam,
        lr=0.01,
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.1,
        amsgrad=True,
    ),
    "adam, maximize": _native(Adam(lr=0.01, maximize=True), torch.optim.Adam, lr=0.01, maximize=True),
    "adamw": _native(AdamW(lr=0.01), torch.optim.AdamW, lr=0.01),
    "adamw, amsgrad, maximize": _native(
        AdamW(lr=0.01, weight_decay=0.2, amsgrad=True, maximize=True),
        torch.optim.AdamW,
        lr=0.01,
        weight_decay=0.2,
        amsgrad=True,
        maximize=True,
    ),
    "adagrad": _native(Adagrad(lr=0.1), torch.optim.Adagrad, lr=0.1),
    "adagrad, all options": _native(
        Adagrad(lr=0.1, lr_decay=0.01, weight_decay=0.1, initial_accumulator_value=0.5, maximize=True),
        torch.optim.Adagrad,
        lr=0.1,
        lr_decay=0.01,
        weight_decay=0.1,
        initial_accumulator_value=0.5,
        maximize=True,
    ),
    "rmsprop": _native(RMSprop(lr=0.01), torch.optim.RMSprop, lr=0.01),
    "rmsprop, centered, momentum, decay": _native(
        RMSprop(lr=0.01, alpha=0.9, weight_decay=0.1, momentum=0.9, centered=True),
        torch.optim.RMSprop,
        lr=0.01,
        alpha=0.9,
        weight_decay=0.1,
        momentum=0.9,
        centered=True,
    ),
    "rmsprop, maximize": _native(RMSprop(lr=0.01, maximize=True), torch.optim.RMSprop, lr=0.01, maximize=True),
    "chain of clip and adam": OptimizerCase(
        chain(clip=ClipNorm(1.0), adam=Adam(lr=0.01)),
        lambda params: _Clipped(
            lambda params: clip_grad_norm_(params, 1.0), params, torch.optim.Adam(params, lr=0.01, fused=True)
        ),
        traced=True,
    ),
    "chain of clip and sgd": OptimizerCase(
        chain(clip=ClipValue(0.3), sgd=SGD(lr=0.1)),
        lambda params: _Clipped(
            lambda params: clip_grad_value_(params, 0.3),
            params,
            torch.optim.SGD(params, lr=0.1, **_kernel(torch.optim.SGD, params)),
        ),
        traced=True,
    ),
    "split of sgd and adamw": OptimizerCase(
        split(matrices=(Ndim(2), SGD(lr=0.1, momentum=0.9)), rest=AdamW(lr=0.01)),
        lambda params: _Several(
            [
                torch.optim.SGD(
                    [p for p in params if p.ndim == 2], lr=0.1, momentum=0.9, **_kernel(torch.optim.SGD, params)
                ),
                torch.optim.AdamW([p for p in params if p.ndim != 2], lr=0.01, fused=True),
            ]
        ),
        traced=True,
    ),
    "torch sgd": _wrapped(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.2, nesterov=False),
    "torch sgd, foreach, nesterov": _wrapped(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "torch adamw": _wrapped(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "torch adamw, fused": _wrapped(torch.optim.AdamW, lr=0.01, fused=True),
    "torch adamw, foreach": _wrapped(torch.optim.AdamW, lr=0.01, foreach=True),
    "torch adagrad": _wrapped(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.5),
    "torch rmsprop": _wrapped(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.9),
    "torch nadam": _wrapped(torch.optim.NAdam, lr=0.01),
    "torch radam": _wrapped(torch.optim.RAdam, lr=0.01, weight_decay=0.1),
    "torch adamax": _wrapped(torch.optim.Adamax, lr=0.01),
    "torch asgd": _wrapped(torch.optim.ASGD, lr=0.01, t0=5.0),
    "torch adadelta": _wrapped(torch.optim.Adadelta, lr=1.0),
    "torch rprop": _wrapped(torch.optim.Rprop, lr=0.01),
    "torch adafactor": _wrapped(torch.optim.Adafactor, lr=0.01),
    "torch muon": attrs.evolve(_wrapped(torch.optim.Muon, lr=0.01), shapes=MATRICES),
    "torch sparse adam": attrs.evolve(
        _wrapped(torch.optim.SparseAdam, lr=0.01), shapes=MATRICES, dtypes=_EXACT, sparse=True
    ),
    "torch lbfgs": attrs.evolve(_wrapped(torch.optim.LBFGS, lr=0.5, max_iter=3, history_size=4), dtypes=_EXACT),
    "torch lbfgs, line search": attrs.evolve(
        _wrapped(torch.optim.LBFGS, max_iter=4, history_size=3, line_search_fn="strong_wolfe"), dtypes=_EXACT
    ),
}
"""Name -> optimizer; the laws hold for each of them."""
