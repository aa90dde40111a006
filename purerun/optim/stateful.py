"""Any optimizer of torch made pure: its memory in the state, and nothing in the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun.optim import trial
from purerun.optim.fixed import Fixed
from purerun.optim.groups import Group
from purerun.optim.memo import Memo
from purerun.optim.optimizer import Buckets, Closure, Optimizer, Params, Report, Slots
from purerun.optim.proxy import Memory, Proxy, signature


def _check(cls: Any, options: Mapping[str, Any]) -> None:
    """Refuse what cannot be made pure."""
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise TypeError(
            f"expected a class of optimizers such as torch.optim.NAdam, got {cls!r}; give the class itself and its "
            "arguments: Torch(torch.optim.NAdam, lr=1e-3)"
        )
    for key, value in options.items():
        if any(isinstance(item, Tensor) for item in (value if isinstance(value, tuple) else (value,))):
            raise TypeError(
                f"expected {key} of {cls.__name__} to be a number, got a tensor; "
                "hyper-parameters become leaves of the state by themselves"
            )
    if options.get("differentiable"):
        raise ValueError(
            f"expected {cls.__name__} without differentiable=True; to differentiate through steps use SGD, Adam, "
            "AdamW, Adagrad or RMSprop with engine='func'"
        )


def _facts(owner: Torch) -> trial.Facts:
    try:
        return trial.facts(owner.cls, owner.options)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{owner.cls.__name__} refuses {dict(owner.options)}: {error}") from error


@attrs.frozen(init=False, repr=False)
class Torch(Optimizer):
    """A `torch.optim.Optimizer` as a pure one, bit-identical to the original.

    Works for each optimizer that keeps what it remembers in its `state` and its parameter
    groups, as those of torch do.  What that is, is found by a trial on stand-ins, and there
    the pure form must equal the original, else `init` raises.  Everything remembered becomes
    a slot of constant shape: Python numbers become 0-d tensors and come back as numbers,
    what is sometimes None or a tensor gets a flag, a list that grows becomes a stack.
    An optimizer that draws from the global generators does so here too.

    The floats among the options are the hyper-parameters: `lr`, `weight_decay`, ...; those
    of a tuple are numbered: `betas` makes `beta1` and `beta2`.

    Args:
        cls: the optimizer's class.
        groups: as for every optimizer.
        capacity: how long a list that grows may become; the option `history_size`, where
            there is one.
        options: further arguments as a mapping.
        **arguments: the arguments of the class.

    >>> nadam = Torch(torch.optim.NAdam, lr=0.1)
    >>> params = {"w": torch.ones(2)}
    >>> new, slots = nadam.update(params, {"w": torch.ones(2)}, nadam.init(params))
    >>> sorted(slots), new["w"].tolist()
    (['exp_avg', 'exp_avg_sq', 'mu_product', 'started', 'step'], [0.894, 0.894])
    """

    cls: type[torch.optim.Optimizer]
    options: Fixed[Any]
    capacity: int | None
    _facts: trial.Facts = attrs.field(init=False, eq=False, repr=False, default=attrs.Factory(_facts, takes_self=True))
    _memories: Memo = attrs.field(init=False, eq=False, repr=False, factory=Memo)
    _idle: Memo = attrs.field(init=False, eq=False, repr=False, factory=Memo)

    def __init__(
        self,
        cls: type[torch.optim.Optimizer],
        *,
        groups: Sequence[Group] = (),
        capacity: int | None = None,
        options: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        joined = Fixed({**(options or {}), **arguments})
        _check(cls, joined)
        self.__attrs_init__(cls=cls, options=joined, capacity=capacity, groups=groups)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        extra = {"groups": self.groups, "capacity": self.capacity}
        shown = {**self.options, **{key: value for key, value in extra.items() if value}}
        return f"Torch({', '.join([self.cls.__name__, *(f'{key}={value!r}' for key, value in shown.items())])})"

    @property
    def closes(self) -> bool:
        """Whether an update needs the closure, as that of LBFGS does."""
        return self._facts.mode == "closure"

    def hyper(self) -> dict[str, float]:
        """List the floats among the options, those of tuples numbered."""
        return {knob.name: knob.base for knob in self._facts.knobs}

    def init(self, params: Params) -> Slots:
        """Make a place for everything that the optimizer will remember, and `started`, which says no.

        Raises:
            ValueError: the optimizer refuses some of the parameters.
            TypeError: it remembers something that tensors of constant shape cannot hold.
        """
        return self._memory(params, signature(params, params)).blank()

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
        """Write one update in place, by lending parameters and slots to an optimizer for one step."""
        if self.closes and closure is None:
            raise TypeError(f"expected a closure for {self.cls.__name__}, as in update(..., closure=...); got none")
        names = [name for bucket in buckets for name in bucket.names]
        spec = signature(params, names)
        key = (tuple(bucket.names for bucket in buckets), spec)
        # Popped, so that a step in another thread makes its own, and one that raises is forgotten.
        # Before its first step an optimizer starts as its constructor leaves it, so there it is made anew.
        proxy = self._idle.pop(key, None) if slots["started"].item() else None
        proxy = proxy or Proxy(self.cls, self.options, self._facts.knobs, key[0], params)
        proxy.advance(self._memory(params, spec), params, grads, slots, buckets, closure if self.closes else None)
        self._idle[key] = proxy

    def _memory(self, params: Params, spec: tuple[Any, ...]) -> Memory:
        if spec not in self._memories:
            self._memories[spec] = self._tried({name: params[name] for name, *_ in spec})
        return self._memories[spec]

    def _tried(self, params: Params) -> Memory:
        size = self.options.get("history_size", 100 if issubclass(self.cls, torch.optim.LBFGS) else None)
        try:
            return trial.memory(self.cls, self.options, self._facts, params, self.capacity or size)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise self._explained(error, params) from error

    def _explained(self, error: Exception, params: Params) -> ValueError:
        refused = [f"`{name}` {list(param.shape)}" for name, param in params.items() if not self._accepts(name, param)]
        if not refused or len(refused) == len(params):
            return ValueError(f"{self.cls.__name__} refuses these parameters: {error}")
        return ValueError(
            f"{self.cls.__name__} refuses {len(refused)} of {len(params)} parameters, "
            f"{', '.join(refused[:8])}: {error}; "
            "give it the others alone and these to another optimizer with pr.optim.split(...)"
        )

    def _accepts(self, name: str, param: Tensor) -> bool:
        try:
            trial.memory(self.cls, self.options, self._facts, {name: param}, self.capacity)
        except (RuntimeError, ValueError, AssertionError):
            return False
        return True
