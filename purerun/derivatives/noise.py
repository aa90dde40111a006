"""The gradient noise scale: how large a batch pays, from how much gradients differ between its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun.grad import Grads


@attrs.frozen(eq=False)
class Noise:
    """What parts of a batch say about the gradient and its noise, in unbiased estimates.

    From An Empirical Model of Large-Batch Training (McCandlish et al. 2018, arXiv:1812.06162), appendix A.1.
    One batch alone says little, and a ratio of noisy numbers is biased: take means of both over many steps, and
    the ratio at the end.

    Attributes:
        signal: of `|G|^2`, the squared norm of the true gradient; an estimate may be below 0.
        noise: of tr(Sigma), the trace of the covariance of one sample's gradient.

    >>> ahead = Noise(torch.tensor(2.0), torch.tensor(8.0)).moved(Noise(torch.tensor(4.0), torch.tensor(4.0)), keep=0.5)
    >>> float(ahead.signal), float(ahead.noise), float(ahead.scale)
    (3.0, 6.0, 2.0)
    """

    signal: Tensor
    noise: Tensor

    @property
    def scale(self) -> Tensor:
        """The simple noise scale `tr(Sigma) / |G|^2`, in samples: smaller batches waste steps, larger ones samples."""
        return self.noise / self.signal

    def moved(self, other: Noise, *, keep: float) -> Noise:
        """Go on a running mean: `keep` of this one, the rest of another."""
        return Noise(*(keep * mine + (1 - keep) * new for mine, new in zip(self._pair, other._pair, strict=True)))

    @classmethod
    def between(cls, *, small: float, small_square: Tensor, large: float, large_square: Tensor) -> Noise:
        """Estimate from squared norms of the gradients of two batch sizes, such as a log may have.

        The two estimators of appendix A.1: `(B |G_B|^2 - b |G_b|^2) / (B - b)` of `|G|^2`, and
        `(|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)` of tr(Sigma).

        Args:
            small: samples of the smaller batch.
            small_square: squared norm of its gradient, or a mean of several.
            large: samples of the larger batch.
            large_square: squared norm of its gradient.

        Raises:
            ValueError: the large batch is not larger.

        >>> two = Noise.between(
        ...     small=1, small_square=torch.tensor(5.0), large=2, large_square=torch.tensor(3.0)
        ... )
        >>> float(two.signal), float(two.noise)
        (1.0, 4.0)
        """
        if not 0 < small < large:
            raise ValueError(f"expected two batch sizes with 0 < small < large, got small={small} and large={large}")
        signal = (large * large_square - small * small_square) / (large - small)
        return cls(signal, (small_square - large_square) / (1 / small - 1 / large))

    @property
    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.signal, self.noise


def noise_scale(parts: Grads | Iterable[Grads]) -> Noise:
    """Estimate the gradient noise scale from the gradients of several parts of one batch.

    The parts are single samples (`pr.per_sample(...)`, which is one value with a row for each), or anything that was
    read separately at the same weights: micro-batches, the batches of an accumulation window, shards.  They may
    differ in size, and each counts by its weight.  With gradients g_k of parts with weights b_k, K of them, and their
    mean g by weight, B in all::

        noise  = (sum_k b_k |g_k|^2 - B |g|^2) / (K - 1)
        signal = |g|^2 - noise / B

    With parts of one size these are the two estimators of `Noise.between`, with the mean of all small batches.

    Args:
        parts: at least two; gradients that were neither clipped nor scaled.

    Raises:
        ValueError: there are fewer.

    >>> step = pr.TrainStep(
    ...     torch.nn.Linear(1, 1, bias=False), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1), engine="func"
    ... )
    >>> state, x = step.init(), torch.tensor([[1.0], [3.0]])  # a sample's gradient is the sample itself
    >>> noise = pr.noise_scale(pr.per_sample(step, state, x))
    >>> float(noise.noise), float(noise.signal)  # the variance of 1 and 3; 2**2 less a half of that
    (2.0, 3.0)
    >>> float(pr.noise_scale([step.grad(state, part) for part in x.split(1)]).noise)
    2.0
    """
    parts = parts if isinstance(parts, Grads) else list(parts)
    weights = _weights(parts)
    count = len(weights)
    if count < 2:
        raise ValueError(
            f"expected at least two parts of a batch, whose gradients can differ, got {count}; cut the batch into more"
        )
    squares, mean_square = torch.zeros_like(weights), torch.zeros_like(weights[0])
    for rows in _rows(parts):
        flat = rows.reshape(count, -1).to(weights)
        squares = squares + flat.square().sum(1)
        mean_square = mean_square + (weights @ flat / weights.sum()).square().sum()
    noise = ((weights * squares).sum() - weights.sum() * mean_square) / (count - 1)
    return Noise(mean_square - noise / weights.sum(), noise)


def _weights(parts: Grads | Sequence[Grads]) -> Tensor:
    """List the weights of the parts: float64 [K], where the gradients are."""
    if isinstance(parts, Grads):
        device = next(iter(parts.grads.values())).device
        return torch.atleast_1d(torch.as_tensor(parts.weight, dtype=torch.float64, device=device))
    device = next(iter(parts[0].grads.values())).device if parts else None
    each: list[Any] = [torch.as_tensor(part.weight, dtype=torch.float64, device=device) for part in parts]
    return torch.stack(each) if each else torch.zeros(0)


def _rows(parts: Grads | Sequence[Grads]) -> list[Tensor]:
    """List the parameters' gradients, each with a row for every part."""
    if isinstance(parts, Grads):
        return [*parts.grads.values()]
    return [torch.stack([part.grads[name] for part in parts]) for name in parts[0].grads]
