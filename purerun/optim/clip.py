"""Clipping of gradients, as torch does it, out of place."""

from __future__ import annotations

from fnmatch import fnmatchcase

import attrs
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from purerun.optim.optimizer import Hyper, Params, Slots, flag, number
from purerun.optim.tracing import cast
from purerun.optim.transform import Applied, Transform
from purerun.valid import several


@attrs.frozen
class ClipNorm(Transform):
    """Scale all gradients down together, so that their norm is at most `max_norm`.

    Equals `torch.nn.utils.clip_grad_norm_` bit for bit.  Reports the norm before clipping as
    `grad_norm`, without waiting for the device.

    Attributes:
        max_norm: the largest norm that is left alone.
        norm_type: the order of the norm; may be `inf`.
        error_if_nonfinite: raise if the norm is NaN or infinite; this waits for the device.

    >>> clip = ClipNorm(1.0)
    >>> done = clip.apply({}, {"w": torch.tensor([3.0, 4.0])}, {}, clip.hyper(), traced=False)
    >>> done.grads["w"].tolist(), float(done.report["grad_norm"])
    ([0.6, 0.8], 5.0)
    """

    max_norm: float = number()
    norm_type: float = number(2.0, hyper=False)
    error_if_nonfinite: bool = flag()

    def apply(self, params: Params, grads: Params, slots: Slots, hyper: Hyper, *, traced: bool) -> Applied:
        """Scale the gradients.

        Raises:
            RuntimeError: the norm is not finite, and that is an error.
        """
        tensors = list(grads.values())
        total = self._norm(tensors) if traced else get_total_norm(tensors, self.norm_type, self.error_if_nonfinite)
        factor = self.factor(total, hyper["max_norm"])
        scaled = [grad * cast(factor, grad) for grad in tensors] if traced else _scaled(tensors, factor)
        return Applied(dict(zip(grads, scaled, strict=True)), {}, {"grad_norm": total})

    def factor(self, total: Tensor, max_norm: float | Tensor) -> Tensor:
        """Compute what gradients of a norm are multiplied by."""
        return torch.clamp(cast(max_norm, total) / (total + 1e-6), max=1.0)

    def _norm(self, tensors: list[Tensor]) -> Tensor:
        # torch's own function, without its no_grad and without foreach kernels, which cannot be mapped.
        norms = [torch.linalg.vector_norm(tensor, self.norm_type) for tensor in tensors]
        return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]), self.norm_type)


@attrs.frozen
class ClipValue(Transform):
    """Clip each element of each gradient into `[-value, value]`.

    Equals `torch.nn.utils.clip_grad_value_` bit for bit.

    Attributes:
        value: the largest magnitude that is left alone.

    >>> clip = ClipValue(0.5)
    >>> clip.apply({}, {"w": torch.tensor([3.0, -0.25])}, {}, clip.hyper(), traced=False).grads["w"].tolist()
    [0.5, -0.25]
    """

    value: float = number()

    def apply(self, params: Params, grads: Params, slots: Slots, hyper: Hyper, *, traced: bool) -> Applied:
        """Clip the gradients."""
        tensors = list(grads.values())
        if traced:
            clipped = [_clamped(grad, hyper["value"]) for grad in tensors]
        else:
            clipped = [tensor.clone() for tensor in tensors]
            self.limit_(clipped, float(hyper["value"]))
        return Applied(dict(zip(grads, clipped, strict=True)), {}, {})

    def limit_(self, tensors: list[Tensor], value: float) -> None:
        """Clip tensors in place."""
        torch._foreach_clamp_min_(tensors, -value)
        torch._foreach_clamp_max_(tensors, value)


@attrs.frozen
class ClipAdaptive(Transform):
    """Scale down each unit's gradient, so that its norm is at most `clipping` times that of the unit's weights.

    Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171, section 4): a unit is a row of a weight,
    `weight[i]`; a vector or a scalar is one unit.  The gradient g of a unit with weights w becomes
    `g * min(1, clipping * max(|w|, eps) / |g|)`.

    The authors leave the last linear layer out: `skip=("fc.*",)`.

    Attributes:
        clipping: the largest ratio of norms that is left alone.
        eps: the least norm that a unit's weights are taken to have, so that zeros can begin to move.
        skip: glob patterns of parameters that are left alone.

    >>> clip = ClipAdaptive(0.1)
    >>> params, grads = {"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}, {"w": torch.tensor([[0.0, 1.0], [0.0, 0.01]])}
    >>> clip.apply(params, grads, {}, clip.hyper(), traced=False).grads["w"].tolist()
    [[0.0, 0.5], [0.0, 0.009999999776482582]]
    """

    clipping: float = number(0.01, check=lambda value: value > 0)
    eps: float = number(1e-3, check=lambda value: value > 0)
    skip: tuple[str, ...] = attrs.field(default=(), converter=several)

    def apply(self, params: Params, grads: Params, slots: Slots, hyper: Hyper, *, traced: bool) -> Applied:
        """Scale the gradients of the units."""
        chosen = {
            name: grad for name, grad in grads.items() if not any(fnmatchcase(name, pattern) for pattern in self.skip)
        }
        clipped = {name: _unit_scaled(params[name], grad, hyper) for name, grad in chosen.items()}
        return Applied({**grads, **clipped}, {}, {})


def _unit_scaled(param: Tensor, grad: Tensor, hyper: Hyper) -> Tensor:
    least = torch.clamp(_unit_norms(param), min=hyper["eps"])
    # A gradient of 0 has an infinite ratio, which is clamped to 1.
    ratio = cast(hyper["clipping"], least) * least / _unit_norms(grad)
    return grad * torch.clamp(ratio, max=1.0).to(grad.dtype)


def _unit_norms(tensor: Tensor) -> Tensor:
    if tensor.ndim < 2:
        return torch.linalg.vector_norm(tensor)
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)


def _clamped(grad: Tensor, value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return torch.clamp(grad, -value.to(grad), value.to(grad))
    return torch.clamp(grad, -value, value)


def _scaled(tensors: list[Tensor], factor: Tensor) -> list[Tensor]:
    if all(tensor.device == factor.device for tensor in tensors):
        return list(torch._foreach_mul(tensors, factor))
    return [tensor * factor.to(tensor.device) for tensor in tensors]
