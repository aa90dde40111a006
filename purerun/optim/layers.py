"""Layer-wise decay: the nearer to the input, the smaller the learning rate."""

from __future__ import annotations

from typing import Any

from purerun.optim.groups import Group
from purerun.valid import is_number


def layer_decay(rate: float, *stages: Any, decay: float | None = None) -> tuple[Group, ...]:
    """Make groups in which each stage learns `rate` times as fast as the one after it.

    The last stage has the base learning rate; so has what no stage matches.  As in ELECTRA (Clark et al.,
    arXiv:2003.10555) and BEiT (Bao et al., arXiv:2106.08254).

    Args:
        rate: in (0, 1].
        stages: which parameters, from the input on; each a pattern, several, or a match of `purerun.optim.match`.
        decay: factor of the weight decay in all of them.

    Raises:
        ValueError: the rate is out of range, or there are no stages.

    >>> stages = ["embed.*", *(f"blocks.{i}.*" for i in range(2)), "head.*"]
    >>> [group.lr_mult for group in layer_decay(0.5, *stages)]
    [0.125, 0.25, 0.5, 1.0]
    """
    if not is_number(rate) or not 0 < rate <= 1:
        raise ValueError(f"expected a rate of layer decay in (0, 1], got {rate!r}")
    if not stages:
        raise ValueError("expected the stages of the model from the input on, got none; name their parameters")
    last = len(stages) - 1
    return tuple(Group(stage, lr_mult=rate ** (last - depth), decay_mult=decay) for depth, stage in enumerate(stages))
