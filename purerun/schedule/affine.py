"""What a schedule says at one moment: an affine map of the base value."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

Value = TypeVar("Value")


class Affine(NamedTuple):
    """The map `base -> scale * base + shift`, two plain floats.

    Because both numbers are plain, the base may be a float, a tensor to differentiate by, or a
    stack of values under `torch.vmap`.

    >>> halved = Affine(0.5, 0.0)
    >>> halved(0.1)
    0.05
    >>> halved.then(Affine(1.0, 0.25))
    Affine(scale=0.5, shift=0.25)

    >>> import torch
    >>> base = torch.tensor(0.1, requires_grad=True)
    >>> torch.autograd.grad(halved(base), base)
    (tensor(0.5000),)
    >>> torch.vmap(halved)(torch.tensor([1.0, 2.0, 4.0]))
    tensor([0.5000, 1.0000, 2.0000])
    """

    scale: float
    shift: float

    def __call__(self, base: Value) -> Value:
        """Return `scale * base + shift`."""
        return self.scale * base + self.shift  # type: ignore[operator]

    def then(self, after: Affine) -> Affine:
        """Return the one map that does this one first and `after` second."""
        return Affine(after.scale * self.scale, after.scale * self.shift + after.shift)


IDENTITY = Affine(1.0, 0.0)
