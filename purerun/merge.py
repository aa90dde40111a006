"""How the gradients of several parts of a batch become those of the whole batch.

Sums by weight are what adds up: each part is weighed, sums are joined in whatever tree the caller
chooses, and the mean is taken once at the end.  An empty part weighs nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from purerun.grad import Grads, Merge

_DOUBLE = torch.float64


@attrs.frozen
class Sum:
    """What some parts of a batch say together.

    Attributes:
        grads: parameter name -> sum of weight times gradient.
        weight: sum of the weights: a number, or a scalar tensor where the loss said its own.
        metrics: name -> sum of weight times value in float64, or what `merges` says.
        merges: how those merge that are not means by weight.
        dtypes: of the metrics, as they were.
    """

    grads: dict[str, Tensor]
    weight: float | Tensor
    metrics: dict[str, Tensor]
    merges: dict[str, Merge]
    dtypes: dict[str, torch.dtype]


def weigh(grads: Grads) -> Sum:
    """Make the sum of one part.

    >>> float(weigh(Grads({"w": torch.tensor(2.0)}, weight=3)).grads["w"])
    6.0
    """
    names = list(grads.grads)
    products = torch._foreach_mul([grads.grads[name] for name in names], grads.weight) if names else []
    metrics = {
        name: value if name in grads.merges else value.to(_DOUBLE) * grads.weight
        for name, value in grads.metrics.items()
    }
    dtypes = {name: value.dtype for name, value in grads.metrics.items()}
    return Sum(dict(zip(names, products, strict=True)), grads.weight, metrics, dict(grads.merges), dtypes)


def join(first: Sum, second: Sum) -> Sum:
    """Join what two neighbouring parts say; the first one's tensors are written into.

    >>> one, two = (weigh(Grads({"w": torch.tensor(float(w))}, weight=w)) for w in (1, 3))
    >>> float(mean(join(one, two)).grads["w"])
    2.5
    """
    torch._foreach_add_([*first.grads.values()], [second.grads[name] for name in first.grads])
    metrics = {
        name: _JOIN[first.merges.get(name, "sum")](value, second.metrics[name]) for name, value in first.metrics.items()
    }
    return attrs.evolve(first, weight=first.weight + second.weight, metrics=metrics)


def mean(total: Sum, buffers: Mapping[str, Tensor] | None = None) -> Grads:
    """Make the gradients of the whole batch; the sum's tensors are written into.

    Args:
        total: of all parts.
        buffers: what the buffers are after the whole batch.
    """
    # The mean of nothing is 0.
    count = total.weight + (total.weight == 0)
    torch._foreach_div_([*total.grads.values()], count)
    metrics = {
        name: value if name in total.merges else (value / count).to(total.dtypes[name])
        for name, value in total.metrics.items()
    }
    return Grads(total.grads, total.weight, dict(buffers or {}), metrics, total.merges)


_JOIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
    "last": lambda _, second: second,
}
