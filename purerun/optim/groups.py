"""Which hyper-parameters which parameters get: rules that give some of them multiples of the base values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from purerun.optim.fixed import Fixed
from purerun.optim.match import Match, ParamInfo, inspect, matching


class GroupError(ValueError):
    """A rule and a model do not fit each other."""


def _finite(_instance: Any, attribute: Any, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"expected {attribute.name} of a Group to be a finite number, got {value!r}")


def _mult(given: Mapping[str, float]) -> Fixed[float]:
    if not isinstance(given, Mapping) or not all(isinstance(value, int | float) for value in given.values()):
        raise TypeError(f"expected mult of a Group to map hyper-parameters to factors, got {given!r}")
    return Fixed({name: float(value) for name, value in given.items()})


@attrs.frozen
class Group:
    """A rule: the parameters that it matches get multiples of the base hyper-parameters.

    Where several rules match a parameter, each hyper-parameter takes the first factor that is
    given for it: "norms do not decay" and "the backbone learns slowly" both hold for the norms
    of the backbone, in either order.

    Attributes:
        match: which parameters: a glob pattern of names, several, `Kind("norm")`, a type of
            module, `Ndim(1)`, a function of `ParamInfo`; see `purerun.optim.match`.
        lr_mult: factor of the learning rate; 0 keeps the parameters as they are.
        decay_mult: factor of the weight decay.
        mult: factors of any hyper-parameters, by name.
        optional: whether the rule may match nothing.
        refuse: whether a parameter that no rule before this one matched is an error.

    >>> Group("backbone.*", lr_mult=0.1).factors
    {'lr': 0.1}
    """

    match: Match = attrs.field(converter=matching)
    lr_mult: float | None = attrs.field(default=None, validator=_finite)
    decay_mult: float | None = attrs.field(default=None, validator=_finite)
    mult: Fixed[float] = attrs.field(factory=dict, converter=_mult)
    optional: bool = attrs.field(default=False, kw_only=True)
    refuse: bool = attrs.field(default=False, kw_only=True)

    @property
    def factors(self) -> Fixed[float]:
        """The factors that are given, by hyper-parameter."""
        named = {"lr": self.lr_mult, "weight_decay": self.decay_mult}
        given = {name: float(value) for name, value in named.items() if value is not None}
        return Fixed(dict(self.mult) | given)


def strict(*groups: Group) -> tuple[Group, ...]:
    """Make groups in which every parameter must match a rule.

    >>> model = nn.Linear(2, 1)
    >>> partition(strict(Group("weight", lr_mult=0.1)), model, ["weight", "bias"])
    Traceback (most recent call last):
    ...
    purerun.optim.groups.GroupError: expected a rule for every parameter, got none for `bias`; add a Group for it
    """
    return (*groups, Group("*", optional=True, refuse=True))


def partition(
    groups: Sequence[Group], model: nn.Module, names: Sequence[str]
) -> tuple[tuple[tuple[str, ...], dict[str, float]], ...]:
    """Put every name into one bucket with its factors, in as few buckets as possible.

    Parameters share a bucket when their factors, dtypes and devices are equal.

    Args:
        groups: the rules.
        model: where the parameters live.
        names: which of them are trained.

    Returns:
        Names and factors (without those that are 1) of each bucket, in the order of the names.

    Raises:
        GroupError: a rule matches no parameter of the model, or refuses one.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> rules = Group("0.*", lr_mult=0.5), Group(["*.bias", "1.*"], decay_mult=0)
    >>> for names, mult in partition(rules, model, [name for name, _ in model.named_parameters()]):
    ...     print(names, mult)
    ('0.weight',) {'lr': 0.5}
    ('0.bias',) {'lr': 0.5, 'weight_decay': 0.0}
    ('1.weight', '1.bias') {'weight_decay': 0.0}
    """
    params, infos = dict(model.named_parameters()), inspect(model)
    for group in groups:
        _matches_something(group, infos)
    _refused(groups, [infos[name] for name in names])
    buckets: dict[Any, list[str]] = {}
    for name in names:
        key = (_factors(groups, infos[name]), params[name].dtype, params[name].device)
        buckets.setdefault(key, []).append(name)
    return tuple((tuple(some), dict(factors)) for (factors, _, _), some in buckets.items())


def _factors(groups: Sequence[Group], info: ParamInfo) -> Fixed[float]:
    factors: dict[str, float] = {}
    for group in groups:
        if group.match(info):
            factors = {**group.factors, **factors}
    return Fixed({name: factor for name, factor in factors.items() if factor != 1})


def _matches_something(group: Group, infos: Mapping[str, ParamInfo]) -> None:
    if not group.optional and not any(map(group.match, infos.values())):
        raise GroupError(
            f"expected {group.match} to match a parameter, got none; {group.match.hint(infos)}; "
            "change the rule, or allow it to match nothing with optional=True"
        )


def _refused(groups: Sequence[Group], infos: Sequence[ParamInfo]) -> None:
    for place, group in enumerate(groups):
        before = [earlier.match for earlier in groups[:place]]
        left = [info.name for info in infos if group.match(info) and not any(match(info) for match in before)]
        if group.refuse and left:
            some = ", ".join(f"`{name}`" for name in left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
            raise GroupError(f"expected a rule for every parameter, got none for {some}; add a Group for it")
