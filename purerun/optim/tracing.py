"""Arithmetic of one update out of place, with hyper-parameters that are numbers or tensors.

torch's functional optimizers take hyper-parameters as `alpha=` and `value=` of in-place
operations and branch on `weight_decay != 0`.  Neither works on a tensor that `vmap` maps
over, and by a number nothing can be differentiated.  So `trace` states the same operations in
the same order out of place; for numbers the result is torch's bit for bit, which is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from purerun.bind import is_abstract
from purerun.optim.optimizer import Hyper, Params, Slots, TracedBuckets

Formula = Callable[..., tuple[Tensor, ...]]
"""`formula(hyper, param, grad, *slots) -> (param, *slots)` for one parameter."""
Condition: TypeAlias = bool | Tensor
"""Something that holds or does not, perhaps for each of what is mapped over."""


def each(
    formula: Formula,
    params: Params,
    grads: Params,
    slots: Mapping[str, Params],
    buckets: TracedBuckets,
    *,
    pairs: bool = True,
    first: Formula | None = None,
) -> tuple[dict[str, Tensor], Slots]:
    """Apply a formula to each parameter of the buckets.

    Args:
        formula: what happens to one parameter.
        params: name -> tensor.
        grads: name -> tensor.
        slots: slot -> name -> tensor, in the order in which the formula takes them.
        buckets: which parameters, by which hyper-parameters.
        pairs: whether complex numbers are seen as pairs of real ones, as where torch squares them.
        first: `first(hyper, param, grad) -> (param, grad)`, what happens before that, to complex numbers as
            they are: with some vector units their arithmetic rounds otherwise than that of pairs.
    """
    moved: dict[str, Tensor] = {}
    after: dict[str, dict[str, Tensor]] = {slot: {} for slot in slots}
    for names, hyper in buckets:
        for name in names:
            given = params[name], grads[name]
            tensors = [*(first(hyper, *given) if first else given), *(slot[name] for slot in slots.values())]
            moved[name], *rest = (_real if pairs else _plain)(formula, hyper, tensors)
            for slot, tensor in zip(after.values(), rest, strict=True):
                slot[name] = tensor
    return moved, {**after}


def cast(value: float | Tensor, like: Tensor) -> float | Tensor:
    """Bring a hyper-parameter to the dtype and device of a tensor; a number is fine as it is.

    `vmap` keeps the dtype of some 0-d operands: without this a float64 learning rate would
    make float64 parameters.
    """
    return _brought(value, like) if isinstance(value, Tensor) else value


def _brought(value: Tensor, like: Tensor) -> Tensor:
    # Under a transform even a `to` with nothing to do costs as much as an addition.
    return value if value.dtype == like.dtype and value.device == like.device else value.to(like)


def times(x: Tensor, scale: float | Tensor) -> Tensor:
    """Compute `x * scale`."""
    return x * cast(scale, x)


def plus(x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    """Compute `x + scale * y`.

    >>> plus(torch.ones(2), torch.ones(2), torch.tensor(0.5, dtype=torch.float64))
    tensor([1.5000, 1.5000])
    """
    return torch.addcmul(x, y, _brought(scale, x)) if isinstance(scale, Tensor) else x.add(y, alpha=scale)


def plus_ratio(x: Tensor, a: Tensor, b: Tensor, scale: float | Tensor) -> Tensor:
    """Compute `x + scale * a / b`."""
    return x + a * scale.to(x) / b if isinstance(scale, Tensor) else x.addcdiv(a, b, value=scale)


def unless_zero(scale: float | Tensor, moved: Tensor, still: Tensor) -> Tensor:
    """Choose `moved`, or `still` where a hyper-parameter is 0.

    >>> unless_zero(0.0, torch.ones(2), torch.zeros(2))
    tensor([0., 0.])
    """
    return where(settled(scale != 0), moved, still)


def where(condition: float | Tensor, moved: Tensor, still: Tensor) -> Tensor:
    """Choose `moved` where a condition holds, and `still` elsewhere; see `settled`."""
    if isinstance(condition, Tensor):
        return torch.where(condition.to(moved.device), moved, still)
    return moved if condition else still


def settled(condition: Condition) -> Condition:
    """Say a condition outright where it can be looked at and is the same for whatever is mapped over.

    To choose between two whole tensors costs much more than to compute either.

    >>> settled(torch.tensor([True, True])), settled(torch.tensor([True, False]))
    (True, tensor([ True, False]))
    """
    values = condition
    while isinstance(values, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(values):
        values = torch._C._functorch.get_unwrapped(values)
    if not isinstance(values, Tensor) or is_abstract(values) or not values.is_cpu:
        return condition
    found = set(values.flatten().tolist())
    return found.pop() if len(found) == 1 else condition


def mean(x: Tensor, y: Tensor, keep: float | Tensor) -> Tensor:
    """Compute the running mean `keep * x + (1 - keep) * y`."""
    return x.lerp(y, cast(1 - keep, x))


def mean_square(x: Tensor, y: Tensor, keep: float | Tensor) -> Tensor:
    """Compute the running mean of squares `keep * x + (1 - keep) * y**2`."""
    # As torch does: its two forms differ in the last bit.
    return mean(x, y.square(), keep) if isinstance(keep, Tensor) else (x * keep).addcmul(y, y, value=1 - keep)


def root(x: Tensor) -> Tensor:
    """Compute the square root of a mean of squares, whose derivative at 0 is taken as 0.

    It is infinite there, and times the gradient, which is 0 too, would make NaN of the derivative of a whole run: a
    weight that has had no gradient (a unit that is never active) would be enough.

    >>> torch.func.grad(lambda x: root(x.square()))(torch.tensor(0.0))
    tensor(0.)
    """
    if not _differentiated(x):
        return x.sqrt()
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def decayed(grad: Tensor, param: Tensor, decay: float | Tensor) -> Tensor:
    """Add an L2 penalty to a gradient."""
    # A tensor may hold any value, in `vmap` several at once, so its term is always there.
    return plus(grad, param, decay) if isinstance(decay, Tensor) or decay != 0 else grad


def _differentiated(x: Tensor) -> bool:
    """Say whether a derivative may be taken through a tensor, as opposed to a mapping over it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_gradtrackingtensor(x):
            return True
        x = torch._C._functorch.get_unwrapped(x)
    return x.requires_grad


def _plain(formula: Formula, hyper: Hyper, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return formula(hyper, *tensors)


def _real(formula: Formula, hyper: Hyper, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    if not tensors[0].is_complex():
        return formula(hyper, *tensors)
    pairs = formula(hyper, *map(torch.view_as_real, tensors))
    return tuple(torch.view_as_complex(pair.contiguous()) for pair in pairs)
