"""What a transform is: a frozen value that makes other gradients of gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import attrs
from torch import Tensor

from purerun.optim.optimizer import Hyper, Params, Report, Slots, numbers


class Applied(NamedTuple):
    """What a transform made.

    Attributes:
        grads: name -> gradient.
        slots: what it remembers now.
        report: what it measured.
    """

    grads: dict[str, Tensor]
    slots: Slots
    report: Report


@attrs.frozen
class Transform(ABC):
    """A pure function of gradients, which stands before an optimizer in a chain."""

    def init(self, params: Params) -> Slots:
        """Make the slots of these parameters, at the shapes that they keep for ever."""
        return {}

    def hyper(self) -> dict[str, float]:
        """List the hyper-parameters that become leaves of the state."""
        return numbers(self)

    @abstractmethod
    def apply(self, params: Params, grads: Params, slots: Slots, hyper: Hyper, *, traced: bool) -> Applied:
        """Make other gradients; nothing that is given is written into.

        Args:
            params: name -> tensor.
            grads: name -> tensor.
            slots: what `init`, or the last time, returned.
            hyper: hyper-parameters by name, numbers or 0-d tensors.
            traced: whether the result will be mapped over or differentiated.
        """
