"""The loss of a batch and its gradients, by one of two engines with the same meaning.

`autograd` runs the module itself on the given tensors and asks `torch.autograd.grad`;
it is fast and works with everything that a training loop works with.  `func` goes
through `torch.func`, so that what it returns can be mapped and differentiated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from numbers import Real
from typing import Any, Literal, TypeAlias

import attrs
import torch
from torch import Tensor, nn

from purerun import batch as _batch
from purerun.bind import Binding, ModelError, is_abstract
from purerun.owned import let_go
from purerun.state import lazy_clone
from purerun.valid import one_of

_ENGINE: Any = torch.autograd.Variable._execution_engine
_ONES: dict[tuple[torch.dtype, torch.device], Tensor] = {}

Engine: TypeAlias = Literal["autograd", "func"]
LossFunction: TypeAlias = Callable[[nn.Module, Any], Any]


class LossError(ValueError):
    """A loss function returned something that cannot be minimised."""


class Loss:
    """A loss that says its weight: a sum over `weight` items (tokens, boxes, pixels).

    The step minimises `sum / weight`; accumulation and data parallel add the sums and the
    weights separately, and so get the loss of the big batch exactly.

    Args:
        sum: scalar tensor.
        weight: how many items it sums over; a number or a scalar tensor, at least 0; what counts nothing moves
            nothing.
        terms: named parts that are reported and not minimised.

    >>> loss = Loss(torch.tensor(6.0), weight=3, accuracy=torch.tensor(0.5))
    >>> float(loss.sum / loss.weight), sorted(loss.terms)
    (2.0, ['accuracy'])
    """

    __slots__ = ("sum", "terms", "weight")

    def __init__(self, sum: Tensor, weight: float | Tensor, **terms: Tensor | Term) -> None:
        self.sum, self.weight, self.terms = sum, weight, terms


Merge: TypeAlias = Literal["mean", "sum", "max", "min", "last"]
"""What a term of several parts of a batch is for the whole: the mean by weight, or one of the others."""


@attrs.frozen
class Term:
    """A term of a loss that says how it merges, where a batch is read in parts.

    A bare tensor is a mean over the samples.  A `Term` is only reported, never minimised.

    Attributes:
        value: scalar tensor, or a number.
        merge: "mean" (by the weights of the parts), "sum", "max", "min" or "last".

    >>> Term(torch.tensor(3), "sum").merge
    'sum'
    """

    value: Tensor | float
    merge: Merge = attrs.field(default="mean", validator=one_of("mean", "sum", "max", "min", "last"))


Block: TypeAlias = Callable[[], AbstractContextManager[Any]]


@attrs.frozen
class Pass:
    """How one forward and backward pass is made; wrappers around `grad` hand another one inwards.

    Attributes:
        part: which part of the iteration's batch is read: () for all of it, (2,) for its third shard, (2, 0) for the
            first micro-batch of that.  Folded into the key of its chance.
        scale: what the loss is multiplied by before it is differentiated: scalar tensor.  The gradients come out
            multiplied by it, the reported loss does not.
        autocast: the dtype of the autocast in which the loss is computed, if any; the backward pass is outside of it,
            as torch wants it.
        within: what makes further `with` blocks, the outermost first, in which the loss is computed and differentiated:
            activation checkpoints run the forward pass again.

    >>> Pass().at(2).at(0).part
    (2, 0)
    """

    part: tuple[int, ...] = ()
    scale: Tensor | None = None
    autocast: torch.dtype | None = None
    within: tuple[Block, ...] = ()

    def at(self, place: int) -> Pass:
        """Go into one of the parts that this part is cut into."""
        return attrs.evolve(self, part=(*self.part, place))


WHOLE = Pass()
"""The pass over a whole batch."""


@attrs.frozen
class Grads:
    """What one batch says: gradients and what came with them.

    Attributes:
        grads: parameter name -> gradient of the *mean* loss, one for each trained parameter.
        weight: how much this batch counts beside others: samples, or the loss's own weight.
        buffers: buffer name -> its value after the forward pass.
        metrics: name -> detached scalar; `loss` is always there.
        merges: how those of them merge that are not means by weight.
        kept: slot -> what the wrapper around `grad` that owns it will write there.
        last: whether the batch is the last one of its epoch, as far as a loop has said so.
        recompute: parameters -> loss and gradients of the same batch there, for line searches.
    """

    grads: dict[str, Tensor]
    weight: float | Tensor = 1.0
    buffers: dict[str, Tensor] = attrs.field(factory=dict)
    metrics: dict[str, Tensor] = attrs.field(factory=dict)
    merges: dict[str, Merge] = attrs.field(factory=dict)
    kept: dict[str, dict[str, Tensor]] = attrs.field(factory=dict)
    last: bool = False
    recompute: Callable[[Mapping[str, Tensor]], tuple[Tensor, Mapping[str, Tensor]]] | None = attrs.field(
        default=None, repr=False, eq=False
    )


def compute(
    engine: Engine,
    binding: Binding,
    loss: LossFunction,
    batch: Any,
    params: Mapping[str, Tensor],
    buffers: dict[str, Tensor],
    trained: tuple[str, ...],
    *,
    unused: Literal["raise", "zero"] = "raise",
    scale: Tensor | None = None,
    autocast: torch.dtype | None = None,
    within: tuple[Block, ...] = (),
) -> Grads:
    """Compute the gradients of a batch's loss by the trained parameters.

    Args:
        engine: "autograd" or "func".
        binding: the module.
        loss: `loss(model, batch)`, see `TrainStep`.
        batch: any nest of tensors.
        params: all parameters by name; with autograd, tensors that the caller owns (they
            carry `requires_grad` while this runs, and not after).
        buffers: all buffers by name; owned by the caller, and written into by the forward.
        trained: the names to differentiate by.
        unused: what to do about a trained parameter that the loss does not depend on; the engine
            func cannot tell, and takes its gradient as zero.
        scale: see `Pass`.
        autocast: see `Pass`.
        within: see `Pass`.

    Raises:
        LossError: the loss is not a scalar, or some trained parameter does not reach it.
    """
    if autocast is not None:
        loss = _autocast(loss, autocast, params[trained[0]].device.type)
    if within:
        loss = _inside(within, loss)
    if engine == "func":
        return _func(binding, loss, batch, params, buffers, trained, scale)
    return _autograd(binding, loss, batch, params, buffers, trained, unused, scale, within)


_NOTHING = nullcontext()


def _inside(within: tuple[Block, ...], loss: LossFunction) -> LossFunction:
    def computed(model: nn.Module, batch: Any) -> Any:
        with _entered(within):
            return loss(model, batch)

    return computed


@contextmanager
def _entered(within: tuple[Block, ...]) -> Iterator[None]:
    with ExitStack() as blocks:
        for block in within:
            blocks.enter_context(block())
        yield


def _autocast(loss: LossFunction, dtype: torch.dtype, device: str) -> LossFunction:
    def cast(model: nn.Module, batch: Any) -> Any:
        with torch.autocast(device, dtype):
            return loss(model, batch)

    return cast


def _autograd(
    binding: Binding,
    loss: LossFunction,
    batch: Any,
    params: Mapping[str, Tensor],
    buffers: dict[str, Tensor],
    trained: tuple[str, ...],
    unused: str,
    scale: Tensor | None,
    within: tuple[Block, ...],
) -> Grads:
    leaves = [params[name] for name in trained]
    own = [param for param in binding.params.values() if param.requires_grad] if binding.watching else []
    for leaf in leaves:
        leaf.requires_grad = True
    try:
        # The backward pass runs inside the binding: activation checkpoints run the
        # forward again, and would do so on the module's own weights otherwise.
        with torch.enable_grad(), binding(params, buffers, training=True) as model:
            total, weight, terms = reduce(loss(model, batch), batch)
            with _entered(within) if within else _NOTHING:
                grads = _backward(total, [*leaves, *own], scale)
    finally:
        for leaf in leaves:
            leaf.requires_grad = False
        if torch._C._is_any_autocast_enabled():
            # Under an autocast that stands around the whole loop, its copies of the weights would
            # outlive the update of a leased state.
            torch.clear_autocast_cache()
    if own:
        _refuse_aliases(binding, own, grads[len(leaves) :])
        grads = grads[: len(leaves)]
    # Not `None in grads`, which asks each tensor whether it equals None.
    if any(grad is None for grad in grads):
        grads = _fill(grads, leaves, trained, unused)
    metrics, merges = _detached(total, terms), _merges(terms)
    own = grads if is_abstract(total) else let_go(grads)
    return Grads(dict(zip(trained, own, strict=True)), weight, buffers, metrics, merges)


def _refuse_aliases(binding: Binding, own: Sequence[Tensor], grads: tuple[Tensor | None, ...]) -> None:
    """Refuse a loss that reaches the module's own parameters past its slots: it would see them as constants."""
    reached = {id(param) for param, grad in zip(own, grads, strict=True) if grad is not None}
    names = [name for name, param in binding.params.items() if id(param) in reached]
    if names:
        raise ModelError(
            f"expected the loss to use the parameters of the state, but it also reaches the module's own {names}, "
            "kept in a plain attribute or a closure; read them from the layer that owns them"
        )


def _backward(total: Tensor, leaves: list[Tensor], scale: Tensor | None) -> tuple[Tensor, ...]:
    """Call the engine as `torch.autograd.grad(total, leaves, allow_unused=True)` does.

    That function's own checks take as long as the whole backward pass of a small layer; a
    scalar total and plain leaves need none of them.
    """
    seed = _one(total) if scale is None else scale.to(total)
    keep_graph = create_graph = False
    allow_unreachable = True
    return _ENGINE.run_backward(
        (total,), (seed,), keep_graph, create_graph, tuple(leaves), allow_unreachable, accumulate_grad=False
    )


def _one(total: Tensor) -> Tensor:
    if is_abstract(total):
        return torch.ones_like(total)
    kind = total.dtype, total.device
    if kind not in _ONES:
        _ONES[kind] = torch.ones((), dtype=total.dtype, device=total.device)
    # A lazy clone, because the gradient of `total` by itself is this very tensor.
    return lazy_clone(_ONES[kind])


def _func(
    binding: Binding,
    loss: LossFunction,
    batch: Any,
    params: Mapping[str, Tensor],
    buffers: dict[str, Tensor],
    trained: tuple[str, ...],
    scale: Tensor | None,
) -> Grads:
    told: list[float] = []
    merges: dict[str, Merge] = {}

    def total_of(chosen: dict[str, Tensor]) -> tuple[Tensor, Any]:
        # Cloned inside: a transform does not allow writes into what it captured.
        inner = {name: buffer.clone() for name, buffer in buffers.items()}
        with binding({**params, **chosen}, inner, training=True) as model:
            total, weight, terms = reduce(loss(model, batch), batch)
        if not isinstance(weight, Tensor):
            # A transform hands out nothing but tensors.
            told.append(weight)
            weight = total.detach()
        merges.update(_merges(terms))
        scaled = total if scale is None else total * scale.to(total)
        return scaled, (weight, inner, _detached(total, terms))

    chosen = {name: params[name] for name in trained}
    with torch.enable_grad():
        grads, (weight, inner, metrics) = torch.func.grad(total_of, has_aux=True)(chosen)
    if not is_abstract(metrics["loss"]):
        names = list(grads)
        grads = dict(zip(names, let_go([grads.pop(name) for name in names]), strict=True))
    # Looked at once more: inside of the transform nobody could.
    return Grads(grads, told[0] if told else _weight(weight), inner, metrics, merges)


def reduce(output: Any, batch: Any) -> tuple[Tensor, float | Tensor, Mapping[str, Any]]:
    """Read what a loss function returned: the mean loss, its weight, and named terms.

    A scalar is the mean over the batch's samples.  In a dict, `loss` is the total if it is
    there; else the total is the sum of the terms that have a gradient, and the others are
    only reported.  `Loss(sum, weight)` says its own weight.

    >>> a, b = torch.ones((), requires_grad=True), torch.tensor(0.5)
    >>> total, weight, terms = reduce({"ce": a, "accuracy": b}, torch.zeros(4, 2))
    >>> total.item(), weight, sorted(terms)
    (1.0, 4, ['accuracy', 'ce'])

    Raises:
        LossError: nothing in it can be minimised.
    """
    if isinstance(output, Tensor):
        return _scalar(output, "the loss"), _batch.size(batch), {}
    if isinstance(output, Loss):
        total, weight = _scalar(output.sum, "the loss's sum"), _weight(output.weight)
        return _mean(total, weight), weight, output.terms
    if isinstance(output, Mapping):
        total = output["loss"] if "loss" in output else _sum(output)
        return _scalar(total, "the loss"), _batch.size(batch), output
    raise LossError(
        "expected the loss function to return a scalar tensor, a dict of named scalar tensors or pr.Loss(sum, weight), "
        f"got {type(output).__name__}"
    )


def _weight(given: Any) -> float | Tensor:
    """Read the weight of a loss: a number where looking waits for nothing, else a scalar tensor that sums exactly."""
    weight = given
    if isinstance(given, Tensor) and given.numel() == 1:
        weight = given.detach().reshape(())
        if weight.device.type != "cpu" or is_abstract(weight):
            return weight.to(torch.float64)
        weight = weight.item()
    number = float(weight) if isinstance(weight, Real) else math.nan
    if not 0 <= number < math.inf:
        got = f"a tensor of shape {list(given.shape)}" if isinstance(weight, Tensor) else repr(weight)
        raise LossError(
            f"expected the loss's weight to be a finite number of at least 0, or a scalar tensor with one, got {got}; "
            "count what the sum is over"
        )
    return number


def _mean(total: Tensor, weight: float | Tensor) -> Tensor:
    """Divide a sum by its weight; the mean of nothing (a batch of padding alone) is 0, and so is its gradient."""
    if not isinstance(weight, Tensor):
        return total / weight if weight else total * 0.0
    # In float64, and as a product, so that what is NaN or infinite stays so.
    return (total / (weight + (weight == 0)) * (weight != 0)).to(total.dtype)


def _sum(terms: Mapping[str, Any]) -> Tensor:
    parts = [_scalar(term, f"the loss term {name!r}") for name, term in terms.items() if _differentiable(term)]
    if not parts:
        raise LossError(
            f"expected a loss with a gradient, but none of its terms {list(terms)} depends on a trained parameter; "
            "is something detached, or under torch.no_grad()?"
        )
    return parts[0] if len(parts) == 1 else torch.stack([part.reshape(()) for part in parts]).sum()


def _differentiable(term: Any) -> bool:
    return isinstance(term, Tensor) and term.requires_grad


def _scalar(total: Any, what: str) -> Tensor:
    if not isinstance(total, Tensor):
        raise LossError(f"expected {what} to be a scalar tensor, got {type(total).__name__}")
    if total.numel() != 1:
        raise LossError(
            f"expected {what} to be a scalar, got a tensor of shape {list(total.shape)}; reduce it, e.g. with .mean()"
        )
    if not total.requires_grad:
        raise LossError(
            f"expected {what} to depend on a trained parameter, but it has no gradient; "
            "is something detached, or under torch.no_grad()?"
        )
    return total if total.ndim == 0 else total.reshape(())


def _detached(total: Tensor, terms: Mapping[str, Any]) -> dict[str, Tensor]:
    # Cloned where it may be a view of a parameter, which the update will write into.
    metrics = {"loss": total.detach().clone() if total._is_view() else total.detach()}
    for name, term in terms.items():
        if name != "loss":
            metrics[name] = _term(name, term)
    return metrics


def _merges(terms: Mapping[str, Any]) -> dict[str, Merge]:
    return {name: term.merge for name, term in terms.items() if isinstance(term, Term) and term.merge != "mean"}


def _term(name: str, term: Any) -> Tensor:
    if isinstance(term, Term):
        return _term(name, term.value)
    if isinstance(term, int | float):
        return torch.tensor(term, device="cpu")
    if isinstance(term, Tensor) and term.numel() == 1:
        return term.detach().clone().reshape(())
    got = f"a tensor of shape {list(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
    raise LossError(f"expected the loss term {name!r} to be a scalar, got {got}; reduce it, or leave it out")


def _fill(
    grads: tuple[Tensor | None, ...], leaves: list[Tensor], trained: tuple[str, ...], unused: str
) -> tuple[Tensor, ...]:
    missing = [name for name, grad in zip(trained, grads, strict=True) if grad is None]
    if unused == "raise":
        names = ", ".join(f"`{name}`" for name in missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise LossError(
            f"expected the loss to depend on every trained parameter, but {len(missing)} of {len(trained)} "
            f"do not reach it: {names}; freeze them with requires_grad_(False), or take their gradient as zero "
            "with unused='zero'"
        )
    return tuple(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves, strict=True))
