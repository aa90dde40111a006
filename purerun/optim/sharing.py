"""Several optimizers as one: each moves the parameters that are its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import attrs
import torch
from torch import Tensor

from purerun.optim.fixed import Ordered
from purerun.optim.groups import Group
from purerun.optim.match import Both, Kind, Match, Name, Not, OneOf, Type, infos_of, matching
from purerun.optim.memo import Memo
from purerun.optim.optimizer import Bucket, Buckets, Closure, Optimizer, Params, Report, Slots, TracedBuckets

Number = TypeVar("Number", bound=float | Tensor)
ACTIVE = "active"
"""The hyper-parameter by which a share is frozen: 0, or any other number."""
Deal: TypeAlias = tuple[int, tuple[str, ...]]
"""The place of a bucket, and the names in it that belong to a share."""


@attrs.frozen
class Share:
    """Parameters and the optimizer that moves them.

    Attributes:
        match: which parameters, by name or shape.
        optimizer: what moves them.
    """

    match: Match = attrs.field(converter=matching)
    optimizer: Optimizer = attrs.field(validator=attrs.validators.instance_of(Optimizer))

    @match.validator
    def _by_tensor(self, _attribute: Any, match: Match) -> None:
        if _asks_for_module(match):
            raise TypeError(
                "expected to share parameters out by name or shape (a glob, Ndim), since a state knows no modules, "
                f"got {match}"
            )

    @optimizer.validator
    def _alone(self, _attribute: Any, optimizer: Optimizer) -> None:
        if optimizer.closes:
            raise TypeError(f"expected optimizers that need no closure, got {optimizer}; it must have all parameters")


def _shares(given: Mapping[str, Any]) -> Ordered[Share]:
    shares = {}
    for name, share in given.items():
        if isinstance(share, Optimizer):
            share = Share(Name("*"), share)
        shares[name] = share if isinstance(share, Share) else Share(*share)
    return Ordered(shares)


@attrs.frozen
class Split(Optimizer):
    """Several optimizers; a parameter belongs to the first whose match means it.

    Slots and hyper-parameters lie under the name of their share: `rest.lr`.  Each share has one more, `active`:
    while that is 0 its parameters are frozen, and so are its slots, as if the share were not there.  A schedule
    of it freezes and unfreezes: `pr.schedule.Freeze(end=3, param="backbone.active")` trains the backbone from
    the fourth epoch on.

    Attributes:
        shares: name -> share.
    """

    shares: Ordered[Share] = attrs.field(converter=_shares)
    groups: tuple[Group, ...] = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: _groups(self.shares), takes_self=True)
    )

    _deals: Memo = attrs.field(init=False, eq=False, repr=False, factory=Memo)

    def hyper(self) -> dict[str, float]:
        """List the hyper-parameters of all shares, each behind the name of its share."""
        return {
            f"{name}.{key}": value
            for name, share in self.shares.items()
            for key, value in {**share.optimizer.hyper(), ACTIVE: 1.0}.items()
        }

    def init(self, params: Params) -> Slots:
        """Make the slots of each share under its name.

        Raises:
            ValueError: a share has no parameters, or a parameter no share.
        """
        owners = self._owners(params)
        idle = [name for name in self.shares if name not in owners.values()]
        if idle:
            raise ValueError(f"expected parameters for each share, got none for {idle}; there are {list(params)[:8]}")
        own = {name: {key: params[key] for key in params if owners[key] == name} for name in self.shares}
        slots = {name: share.optimizer.init(own[name]) for name, share in self.shares.items()}
        return {name: inner for name, inner in slots.items() if inner}

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
        """Write the update of each share in place."""
        for name, own in self._dealt(params, buckets).items():
            if self._active(name, buckets):
                self.shares[name].optimizer.write(params, grads, slots.get(name, {}), own, report=report)

    def trace(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        buckets: TracedBuckets,
        *,
        report: Report | None = None,
    ) -> tuple[dict[str, Tensor], Slots]:
        """Make the parameters and slots of each share."""
        moved: dict[str, Tensor] = {}
        after: Slots = {}
        for name, own in self._dealt(params, buckets).items():
            active, before = self._active(name, buckets), slots.get(name, {})
            new, inner = self.shares[name].optimizer.trace(params, grads, before, own, report=report)
            moved |= _chosen(active, new, params)
            after |= {name: _chosen(active, inner, before)} if inner else {}
        return moved, after

    def _active(self, name: str, buckets: Sequence[Bucket[Number]]) -> Number:
        return buckets[0].hyper[f"{name}.{ACTIVE}"]

    def _owners(self, params: Params) -> dict[str, str]:
        owners = {}
        for name, info in infos_of(params).items():
            owner = next((key for key, share in self.shares.items() if share.match(info)), None)
            if owner is None:
                raise ValueError(f"expected a share for `{name}` {list(info.shape)}, got none; add one for the rest")
            owners[name] = owner
        return owners

    def _dealt(self, params: Params, buckets: Sequence[Bucket[Number]]) -> dict[str, list[Bucket[Number]]]:
        key = tuple((names, tuple(params[name].ndim for name in names)) for names, _ in buckets)
        if key not in self._deals:
            self._deals[key] = self._deal(params, buckets)
        return {
            name: [Bucket(own, {key: buckets[place].hyper[f"{name}.{key}"] for key in keys}) for place, own in deal]
            for name, (keys, deal) in self._deals[key].items()
        }

    def _deal(self, params: Params, buckets: TracedBuckets) -> dict[str, tuple[list[str], list[Deal]]]:
        owners = self._owners({name: params[name] for bucket in buckets for name in bucket.names})
        deals: dict[str, tuple[list[str], list[Deal]]] = {}
        for name, share in self.shares.items():
            own = [tuple(key for key in names if owners[key] == name) for names, _ in buckets]
            deal = [(place, names) for place, names in enumerate(own) if names]
            deals |= {name: (list(share.optimizer.hyper()), deal)} if deal else {}
        return deals


def _chosen(active: float | Tensor, new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Take the new tensors where a share is active, and else the old ones."""
    if not isinstance(active, Tensor):
        return {name: value if active else old[name] for name, value in new.items()}
    return {
        name: _chosen(active, value, old[name])
        if isinstance(value, dict)
        else torch.where(active.to(value.device) != 0, value, old[name])
        for name, value in new.items()
    }


Given: TypeAlias = Optimizer | tuple[Any, Optimizer]


def split(**shares: Given) -> Split:
    """Share parameters out among optimizers: `name=(match, optimizer)`, and `name=optimizer` for the rest.

    >>> import torch
    >>> from purerun.optim import SGD, AdamW, Ndim
    >>> both = split(matrices=(Ndim(2), SGD(lr=0.1, momentum=0.9)), rest=AdamW())
    >>> slots = both.init({"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)})
    >>> list(slots["matrices"]["momentum_buffer"]), list(slots["rest"]["exp_avg"])
    (['fc.weight'], ['fc.bias'])
    """
    return Split(shares)


def _groups(shares: Mapping[str, Share]) -> tuple[Group, ...]:
    """Collect the groups of the shares, each about its own parameters and its own hyper-parameters."""
    groups: list[Group] = []
    taken: Match = Name("")
    for name, share in shares.items():
        own = share.match & ~taken
        for group in share.optimizer.groups:
            mult = {f"{name}.{key}": factor for key, factor in group.factors.items()}
            groups.append(Group(own & group.match, mult=mult, optional=group.optional, refuse=group.refuse))
        taken = taken | share.match
    return tuple(groups)


def _asks_for_module(match: Match) -> bool:
    if isinstance(match, Both | OneOf):
        return _asks_for_module(match.one) or _asks_for_module(match.other)
    return _asks_for_module(match.match) if isinstance(match, Not) else isinstance(match, Kind | Type)
