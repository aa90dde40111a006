"""What an optimizer is: a frozen value that makes its slots and moves parameters by gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import attrs
import torch
from torch import Tensor

from purerun.optim.groups import Group
from purerun.state import lazy_clone
from purerun.valid import floating

Params: TypeAlias = Mapping[str, Tensor]
Slots: TypeAlias = dict[str, Any]
"""What an optimizer remembers: a counter is a tensor, a slot is a dict by parameter name."""
Hyper: TypeAlias = Mapping[str, float | Tensor]
"""Hyper-parameters by name: numbers for the kernels, or also 0-d tensors to map over or differentiate by."""
Value_co = TypeVar("Value_co", bound=float | Tensor, covariant=True)
Closure: TypeAlias = Callable[[Params], tuple[Tensor, Params]]
"""Loss and gradients of the same batch at other parameters: what a line search asks for."""
Report: TypeAlias = dict[str, Tensor]
"""What an update measured, for the reader: name -> 0-d tensor."""


class Untraceable(TypeError):
    """An optimizer has only its kernel: nothing to map, differentiate or compile."""


class Bucket(NamedTuple, Generic[Value_co]):
    """Parameters that one kernel call updates together: they share hyper-parameters, dtype and device."""

    names: tuple[str, ...]
    hyper: Mapping[str, Value_co]


Buckets: TypeAlias = Sequence[Bucket[float]]
"""What a kernel takes."""
TracedBuckets: TypeAlias = Sequence[Bucket[float | Tensor]]
"""What can be mapped over and differentiated by."""


def _known(optimizer: Optimizer, _attribute: Any, groups: tuple[Group, ...]) -> None:
    for group in groups:
        if not isinstance(group, Group):
            raise TypeError(f"expected groups of pr.optim.Group, got {group!r}")
        wrong = sorted({name for name, factor in group.factors.items() if factor != 1} - set(optimizer.hyper()))
        if wrong:
            raise ValueError(
                f"expected factors of {sorted(optimizer.hyper())}, which {type(optimizer).__name__} has, "
                f"got {wrong} in {group}"
            )


@attrs.frozen
class Optimizer(ABC):
    """A pure optimizer: `slots = init(params)`, `params, slots = update(params, grads, slots)`.

    Beneath the pure door stand two forms: `write` works in place on tensors that the caller
    owns (torch's fused and foreach kernels), `trace` returns new tensors and can be
    differentiated and mapped.  A subclass gives `init`, `write` and, if it can, `trace`.

    Attributes:
        groups: rules that give some parameters multiples of the hyper-parameters; for each
            hyper-parameter the first rule that matches and names it wins.
    """

    groups: tuple[Group, ...] = attrs.field(default=(), kw_only=True, converter=tuple, validator=_known)

    @property
    def closes(self) -> bool:
        """Whether an update needs the closure: loss and gradients at other parameters."""
        return False

    @abstractmethod
    def init(self, params: Params) -> Slots:
        """Make the slots of these parameters, at the shapes that they keep for ever."""

    @abstractmethod
    def write(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        buckets: Buckets,
        *,
        report: Report | None = None,
        closure: Closure | None = None,
    ) -> None:
        """Write one update into `params` and `slots`, which the caller owns.

        Args:
            params: name -> tensor; entries may be written into, not replaced.
            grads: name -> tensor; read only.
            slots: tensors may be written into, entries may be replaced by tensors of the same
                shape and dtype.
            buckets: which parameters move, and by which hyper-parameters.
            report: where an optimizer that measures something puts it.
            closure: for an optimizer that `closes`.
        """

    def trace(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        buckets: TracedBuckets,
        *,
        report: Report | None = None,
    ) -> tuple[dict[str, Tensor], Slots]:
        """Make the parameters and slots after one update, as functions to map and differentiate.

        Hyper-parameters may be numbers or 0-d tensors.

        Raises:
            Untraceable: there is no differentiable form of this optimizer.
        """
        raise Untraceable(
            f"{type(self).__name__} has no form to map or differentiate; with engine='func' use SGD, Adam, AdamW, "
            "Adagrad or RMSprop"
        )

    def hyper(self) -> dict[str, float]:
        """List the hyper-parameters that become leaves of the state: name -> base value."""
        return numbers(self)

    def update(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        hyper: Mapping[str, float] | None = None,
        *,
        report: Report | None = None,
        closure: Closure | None = None,
    ) -> tuple[dict[str, Tensor], Slots]:
        """Make the parameters and slots after one update; the arguments stay as they are.

        Groups are no part of this: which parameter is in which group is known only with a
        module at hand, see `partition`.

        Args:
            params: name -> tensor.
            grads: name -> tensor of the same shape.
            slots: what `init`, or the last update, returned.
            hyper: values to use instead of the optimizer's own.
            report: where an optimizer that measures something puts it.
            closure: for an optimizer that `closes`.

        Raises:
            KeyError: a hyper-parameter that this optimizer does not have.
            ValueError: a gradient does not fit its parameter.

        >>> from purerun.optim import SGD
        >>> sgd, params = SGD(lr=0.5), {"w": torch.ones(2)}
        >>> new, slots = sgd.update(params, {"w": torch.ones(2)}, sgd.init(params))
        >>> params["w"].tolist(), new["w"].tolist()
        ([1.0, 1.0], [0.5, 0.5])
        """
        values = {**self.hyper(), **(hyper or {})}
        if len(values) > len(self.hyper()):
            unknown = sorted(set(values) - set(self.hyper()))
            raise KeyError(f"expected hyper-parameters among {sorted(self.hyper())}, got {unknown}")
        # A fused kernel would read past the end of a gradient that is too small.
        wrong = [name for name, param in params.items() if name not in grads or grads[name].shape != param.shape]
        if wrong:
            raise ValueError(f"expected a gradient of each parameter's shape, got none such for {wrong[:8]}")
        new = {name: lazy_clone(tensor) for name, tensor in params.items()}
        kept = owned(slots)
        self.write(new, grads, kept, alike(new, values), report=report, closure=closure)
        return new, kept


def number(
    default: float = attrs.NOTHING,  # type: ignore[assignment]
    *,
    check: Callable[[float], bool] = lambda value: value >= 0,
    hyper: bool = True,
) -> Any:
    """Declare a field that is a number, by default one that becomes a leaf of the state.

    Args:
        default: its value, if it has one.
        check: which values make sense; NaN never does.
        hyper: whether it is a hyper-parameter; one that only `init` reads is not.
    """

    def validate(owner: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"expected {type(owner).__name__}.{field.name} to be a number, got {value!r}")
        if value != value or not check(value):
            raise ValueError(f"{type(owner).__name__}.{field.name}={value!r} is out of range")

    # 1 and 1.0 are one learning rate, and must have one fingerprint.
    return attrs.field(default=default, metadata={"hyper": hyper}, validator=validate, converter=floating)


def flag() -> Any:
    """Declare a field that is True or False, and False by default."""

    def validate(owner: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"expected {type(owner).__name__}.{field.name} to be True or False, got {value!r}")

    return attrs.field(default=False, validator=validate)


def numbers(value: Any) -> dict[str, float]:
    """List the hyper-parameters among the fields of a value."""
    return {
        field.name: float(getattr(value, field.name))
        for field in attrs.fields(type(value))
        if field.metadata.get("hyper")
    }


def alike(params: Params, hyper: Mapping[str, float]) -> list[Bucket[float]]:
    """Put parameters of one dtype and device into one bucket each.

    >>> params = {"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.float64), "c": torch.zeros(2)}
    >>> [bucket.names for bucket in alike(params, {})]
    [('a', 'c'), ('b',)]
    """
    kinds: dict[Any, list[str]] = {}
    for name, tensor in params.items():
        kinds.setdefault((tensor.dtype, tensor.device), []).append(name)
    return [Bucket(tuple(names), hyper) for names in kinds.values()]


def owned(slots: Slots) -> Slots:
    """Clone slots lazily, so that the result may be written into."""
    return {name: owned(value) if isinstance(value, dict) else lazy_clone(value) for name, value in slots.items()}


def zeros(params: Params) -> dict[str, Tensor]:
    """Make a slot of zeros: one tensor like each parameter."""
    return {name: torch.zeros_like(param, memory_format=torch.preserve_format) for name, param in params.items()}


def counter(params: Params) -> Tensor:
    """Make the counter of steps that the kernels want: float32, where the parameters are."""
    return torch.zeros((), dtype=torch.float32, device=next(iter(params.values())).device)


def pick(tensors: Params, names: Sequence[str]) -> list[Tensor]:
    """List tensors by name, in the order of the names."""
    return list(map(tensors.__getitem__, names))
