"""What an optimizer is: a frozen value that makes its slots and moves parameters by gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import attrs
import torch
from torch import Tensor

from purerun.optim.groups import Group
from purerun.state import lazy_clone

Params: TypeAlias = Mapping[str, Tensor]
Slots: TypeAlias = dict[str, Any]
"""What an optimizer remembers: a counter is a tensor, a slot is a dict by parameter name."""


class Bucket(NamedTuple):
    """Parameters that one kernel call updates together: they share hyper-parameters, dtype and device."""

    names: tuple[str, ...]
    hyper: Mapping[str, float | Tensor]


@attrs.frozen
class Optimizer(ABC):
    """A pure optimizer: `slots = init(params)`, `params, slots = update(params, grads, slots)`.

    Beneath the pure door stand two of torch's own implementations: `write` works in place on
    tensors that the caller owns (the fused and foreach kernels), `trace` returns new tensors
    and can be differentiated and mapped.  A subclass gives `init`, `write` and `trace`.

    Attributes:
        groups: rules that give some parameters multiples of the hyper-parameters; the first
            that matches wins.
    """

    groups: tuple[Group, ...] = attrs.field(default=(), kw_only=True, converter=tuple)

    @abstractmethod
    def init(self, params: Params) -> Slots:
        """Make the slots of these parameters, at the shapes that they keep for ever."""

    @abstractmethod
    def write(self, params: Params, grads: Params, slots: Slots, buckets: Sequence[Bucket]) -> None:
        """Write one update into `params` and `slots`, which the caller owns."""

    def trace(
        self, params: Params, grads: Params, slots: Slots, buckets: Sequence[Bucket]
    ) -> tuple[dict[str, Tensor], Slots]:
        """Make the parameters and slots after one update, as functions to map and differentiate.

        Raises:
            TypeError: torch has no differentiable form of this optimizer.
        """
        raise TypeError(
            f"{type(self).__name__} has no differentiable form in torch; with engine='func' use SGD, Adam, AdamW, "
            "Adagrad or RMSprop"
        )

    def hyper(self) -> dict[str, float]:
        """List the hyper-parameters that become leaves of the state: name -> base value."""
        return {
            field.name: float(getattr(self, field.name))
            for field in attrs.fields(type(self))
            if field.metadata.get("hyper") and getattr(self, field.name) is not None
        }

    def update(
        self, params: Params, grads: Params, slots: Slots, hyper: Mapping[str, float] | None = None
    ) -> tuple[dict[str, Tensor], Slots]:
        """Make the parameters and slots after one update; the arguments stay as they are.

        Args:
            params: name -> tensor.
            grads: name -> tensor of the same shape.
            slots: what `init`, or the last update, returned.
            hyper: values to use instead of the optimizer's own.

        >>> from purerun.optim import SGD
        >>> sgd, params = SGD(lr=0.5), {"w": torch.ones(2)}
        >>> new, slots = sgd.update(params, {"w": torch.ones(2)}, sgd.init(params))
        >>> params["w"].tolist(), new["w"].tolist()
        ([1.0, 1.0], [0.5, 0.5])
        """
        new = {name: lazy_clone(tensor) for name, tensor in params.items()}
        kept = owned(slots)
        self.write(new, grads, kept, [Bucket(tuple(params), {**self.hyper(), **(hyper or {})})])
        return new, kept


def number(default: float | None = None, *, check: Callable[[float], bool] = lambda value: value >= 0) -> Any:
    """Declare a field that is a hyper-parameter: a number that becomes a leaf of the state."""

    def validate(owner: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"expected {type(owner).__name__}.{field.name} to be a number, got {value!r}")
        if not check(value):
            raise ValueError(f"{type(owner).__name__}.{field.name}={value!r} is out of range")

    given: dict[str, Any] = {} if default is None else {"default": default}
    return attrs.field(metadata={"hyper": True}, validator=validate, **given)


def owned(slots: Slots) -> Slots:
    """Clone slots lazily, so that the result may be written into."""
    return {name: owned(value) if isinstance(value, dict) else lazy_clone(value) for name, value in slots.items()}


def zeros(params: Params) -> dict[str, Tensor]:
    """Make a slot of zeros: one tensor like each parameter."""
    return {name: torch.zeros_like(param, memory_format=torch.preserve_format) for name, param in params.items()}


def pick(tensors: Params, names: Sequence[str]) -> list[Tensor]:
    """List tensors by name, in the order of the names."""
    return [tensors[name] for name in names]
