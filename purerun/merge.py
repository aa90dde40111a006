"""How the gradients of several parts of a batch become those of the whole batch.

Sums by weight are what adds up: each part is weighed, sums are joined in whatever tree the caller
chooses, and the mean is taken once at the end.  An empty part weighs nothing and changes nothing.
Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import add as add_
from typing import TypeAlias

import attrs
import torch
from torch import Tensor

from purerun.bind import is_abstract
from purerun.grad import Grads, LossError, Merge

Number: TypeAlias = float | Tensor

_DOUBLE = torch.float64
_SHORT = frozenset({torch.float16, torch.bfloat16})


@attrs.frozen
class Sum:
    """What some parts of a batch say together.

    Attributes:
        grads: parameter name -> sum of weight times gradient; in float32 where gradients have 16 bits.
        weight: sum of the weights: a number, or a scalar tensor where the loss said its own.
        metrics: name -> sum of weight times value, or what `merges` says: numbers, where looking waits for nothing,
            else tensors in float64.
        merges: how those merge that are not means by weight.
        dtypes: of the metrics, as they were.
        short: of the gradients that have 16 bits.
    """

    grads: dict[str, Tensor]
    weight: float | Tensor
    metrics: dict[str, Number]
    merges: dict[str, Merge]
    dtypes: dict[str, torch.dtype]
    short: dict[str, torch.dtype] = attrs.field(factory=dict)


def weigh(grads: Grads) -> Sum:
    """Make the sum of one part.

    >>> float(weigh(Grads({"w": torch.tensor(2.0)}, weight=3)).grads["w"])
    6.0
    """
    names, tensors = list(grads.grads), list(grads.grads.values())
    short = {name: grad.dtype for name, grad in grads.grads.items() if grad.dtype in _SHORT}
    if short:
        tensors = [grad.to(summed(grad.dtype)) for grad in tensors]
    products = torch._foreach_mul(tensors, plain(grads.weight)) if names else []
    dtypes = {name: value.dtype for name, value in grads.metrics.items()}
    summands = dict(zip(names, products, strict=True))
    return Sum(summands, grads.weight, _weighed(grads), dict(grads.merges), dtypes, short)


def join(first: Sum, second: Sum) -> Sum:
    """Join what two neighbouring parts say; the first one's tensors are written into.

    >>> one, two = (weigh(Grads({"w": torch.tensor(float(w))}, weight=w)) for w in (1, 3))
    >>> float(mean(join(one, two)).grads["w"])
    2.5

    Raises:
        LossError: the loss reported other terms of the second part.
    """
    torch._foreach_add_([*first.grads.values()], [second.grads[name] for name in first.grads])
    return _joined(first, second.weight, second.metrics)


def add(total: Sum, part: Grads) -> Sum:
    """Join the next part to a sum, whose tensors are written into: `join(total, weigh(part))` without its products.

    >>> one, two = (Grads({"w": torch.tensor(float(w))}, weight=w) for w in (1, 3))
    >>> float(mean(add(weigh(one), two)).grads["w"])
    2.5

    Raises:
        LossError: the loss reported other terms of this part.
    """
    accumulate([*total.grads.values()], [part.grads[name] for name in total.grads], part.weight)
    return _joined(total, part.weight, _weighed(part))


def mean(total: Sum, buffers: Mapping[str, Tensor] | None = None) -> Grads:
    """Make the gradients of the whole batch; the sum's tensors are written into.

    Args:
        total: of all parts.
        buffers: what the buffers are after the whole batch.
    """
    # The mean of nothing is 0.
    count = total.weight + (total.weight == 0)
    torch._foreach_div_([*total.grads.values()], plain(count))
    grads = {**total.grads, **{name: total.grads[name].to(dtype) for name, dtype in total.short.items()}}
    metrics = {
        name: scalar(
            value if name in total.merges else value / count, reported(total.merges.get(name), total.dtypes[name])
        )
        for name, value in total.metrics.items()
    }
    return Grads(grads, total.weight, dict(buffers or {}), metrics, total.merges)


def accumulate(sums: list[Tensor], grads: list[Tensor], weight: float | Tensor) -> None:
    """Write weighted gradients into their sums, which may have a wider dtype.

    >>> sums = [torch.ones(1)]
    >>> accumulate(sums, [torch.full((1,), 2.0, dtype=torch.bfloat16)], weight=3)
    >>> sums
    [tensor([7.])]
    """
    weight = plain(weight)
    if not isinstance(weight, Tensor):
        torch._foreach_add_(sums, grads, alpha=weight)
        return
    # In the wider dtype: a count of tokens would be rounded in a short one.
    wide = [grad.to(total.dtype) for grad, total in zip(grads, sums, strict=True)]
    torch._foreach_add_(sums, torch._foreach_mul(wide, weight))


def summed(dtype: torch.dtype) -> torch.dtype:
    """Say in which dtype gradients are summed: sums of 16 bits would lose what is added to them.

    >>> summed(torch.bfloat16), summed(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in _SHORT else dtype


def plain(weight: float | Tensor) -> float | Tensor:
    """Make a weight a number, where looking at it waits for nothing."""
    if isinstance(weight, Tensor) and weight.device.type == "cpu" and not _transformed(weight):
        return weight.item()
    return weight


def _transformed(tensor: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def reported(merge: Merge | None, dtype: torch.dtype) -> torch.dtype:
    """Say in which dtype a term of the whole batch is reported: a sum of short whole numbers may be a long one.

    >>> reported("sum", torch.uint8), reported("max", torch.uint8), reported("sum", torch.float32)
    (torch.int64, torch.uint8, torch.float32)
    """
    return torch.int64 if merge == "sum" and not dtype.is_floating_point and not dtype.is_complex else dtype


def _weighed(grads: Grads) -> dict[str, Number]:
    weight, merges = grads.weight, grads.merges
    read = _number if not isinstance(weight, Tensor) else _double
    return {name: read(value) if name in merges else read(value) * weight for name, value in grads.metrics.items()}


def _double(value: Tensor) -> Tensor:
    return value.to(_DOUBLE)


def _number(value: Tensor) -> Number:
    # A few numbers of Python take less time than as many tensors of one element.
    return _double(value) if value.ndim or not value.is_cpu or is_abstract(value) else value.item()


def scalar(value: Number, dtype: torch.dtype) -> Tensor:
    """Make the scalar tensor of a number; a float by way of float64, as on a device.

    >>> scalar(2.75, torch.int64), scalar(True, torch.bool)
    (tensor(2), tensor(True))
    """
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, float):
        return torch.scalar_tensor(value, dtype=_DOUBLE, device="cpu").to(dtype)
    return torch.scalar_tensor(value, dtype=dtype, device="cpu")


def _joined(first: Sum, weight: float | Tensor, metrics: Mapping[str, Number]) -> Sum:
    if first.metrics.keys() != metrics.keys():
        raise LossError(
            f"expected the loss to report the same terms of each part of a batch, got {sorted(first.metrics)} of one "
            f"and {sorted(metrics)} of another; report every term each time"
        )
    together = {
        name: _JOIN[first.merges.get(name, "sum")](value, metrics[name]) for name, value in first.metrics.items()
    }
    return attrs.evolve(first, weight=first.weight + weight, metrics=together)


def _largest(first: Number, second: Number) -> Number:
    """Take the larger one, or the one that is NaN, as torch does."""
    if isinstance(first, Tensor):
        return torch.maximum(first, torch.as_tensor(second))
    return first if first != first or first > second else second


def _least(first: Number, second: Number) -> Number:
    if isinstance(first, Tensor):
        return torch.minimum(first, torch.as_tensor(second))
    return first if first != first or first < second else second


_JOIN: dict[str, Callable[[Number, Number], Number]] = {
    "sum": add_,
    "max": _largest,
    "min": _least,
    "last": lambda _, second: second,
}
