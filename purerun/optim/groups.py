"""Which hyper-parameters which parameters get: rules by name, by kind of module, or by any function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from torch import nn


@attrs.frozen
class Group:
    """A rule: the parameters that it matches get multiples of the base hyper-parameters.

    Attributes:
        match: which parameters.
        mult: hyper-parameter name -> factor on its base value.
    """

    match: str
    mult: Mapping[str, float]


def partition(
    groups: Sequence[Group], model: nn.Module, names: Sequence[str]
) -> tuple[tuple[tuple[str, ...], dict[str, float]], ...]:
    """Put every name into one bucket with its multipliers."""
    return ((tuple(names), {}),)
