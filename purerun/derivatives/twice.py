"""A function that is computed again in the backward pass, so that its inner values need not be kept.

`torch.utils.checkpoint` does this for plain autograd only; this works inside of torch.func's transforms too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

Function: TypeAlias = Callable[..., tuple[Tensor, ...]]


def twice(run: Function, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Call a function of tensors of which nothing but the arguments is kept for the backward pass: that calls it again.

    Raises:
        ValueError: its outputs have a derivative by something that is no argument, which could not be found again.

    >>> torch.func.grad(lambda x: twice(lambda x: (x.sin(),), x)[0])(torch.tensor(0.0))
    tensor(1.)
    """
    outputs = run(*(tensor.detach() if flows(tensor) else tensor for tensor in tensors))
    if any(map(_is_moving, outputs)):
        raise ValueError(
            "expected a derivative by what comes in through the state or the batches (tensors in dicts, lists and "
            "tuples), got one by something else, such as a tensor in the loss's closure; let it come in there, or use "
            "recompute=0"
        )
    return _Twice.apply(run, len(outputs), *outputs, *tensors)


class _Twice(torch.autograd.Function):
    """The derivative of a function whose outputs are known.

    Transforms record the backward pass, for it may be differentiated once more.  So that what is computed again is
    not kept then, the backward pass is one more function that is called twice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(run: Function, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors[ctx.count :])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        pulled = iter(twice(partial(_pull, ctx.run, len(given)), *given, *grads))
        return None, None, *([None] * ctx.count), *(next(pulled) if flows(tensor) else None for tensor in given)


def _pull(run: Function, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Compute the products of a function's derivative with vectors: its `count` arguments come first, then these."""
    arguments, vectors = [*tensors[:count]], tensors[count:]
    places = [place for place, tensor in enumerate(arguments) if flows(tensor)]

    def smooth(*moving: Tensor) -> tuple[Tensor, ...]:
        given = arguments.copy()
        for place, tensor in zip(places, moving, strict=True):
            given[place] = tensor
        return run(*given)

    pull = torch.func.vjp(smooth, *(arguments[place] for place in places))[1]
    return pull(vectors)


def flows(leaf: Tensor) -> bool:
    """Say whether a derivative can go through a tensor; none goes through counters."""
    return leaf.is_floating_point() or leaf.is_complex()


def _is_moving(tensor: Tensor) -> bool:
    """Say whether a tensor has a derivative, in any of the transforms that are under way."""
    while not tensor.requires_grad and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad
