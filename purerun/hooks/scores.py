"""Scores in a state: which validation each comes from, and which judged the state that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from purerun.population import members, spread
from purerun.state import State, peek

COUNTER = "iter"
"""A score of this name (after the validation's prefix), int64, says which iteration was judged."""


def grouped(scores: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Sort scores by the validation they come from: counter -> names; "" for those without one.

    A score belongs to the counter with the longest prefix that its name begins with.

    >>> one, half = torch.tensor(1), torch.tensor(0.5)
    >>> grouped({"iter": one, "acc": half, "ema_iter": one, "ema_acc": half})
    {'ema_iter': ('ema_acc',), 'iter': ('acc',)}
    """
    leaves = {name: leaf for name, leaf in scores.items() if isinstance(leaf, Tensor) and not leaf.ndim}
    counters = [name for name, leaf in leaves.items() if name.endswith(COUNTER) and leaf.dtype == torch.int64]
    groups: dict[str, tuple[str, ...]] = {}
    left = [name for name in leaves if name not in counters]
    for counter in sorted(counters, key=len, reverse=True):
        prefix = counter.removesuffix(COUNTER)
        groups[counter] = tuple(name for name in left if name.startswith(prefix))
        left = [name for name in left if not name.startswith(prefix)]
    return {**groups, "": tuple(left)} if left else groups


def judged(state: State) -> dict[str, float]:
    """Read the scores of the validations that judged this very state: name -> value, `name[0]` for the first member.

    >>> from purerun.testing import counted
    >>> scores = {"iter": torch.tensor(7), "acc": torch.tensor(0.5)}
    >>> judged(counted(iter=7, scores=scores)), judged(counted(iter=8, scores=scores))
    ({'acc': 0.5}, {})
    """
    tree = peek(state)
    scores = spread(peek(tree["scores"]), members(state)) if "scores" in tree and "iter" in tree else {}
    now = [
        names for counter, names in grouped(scores).items() if counter and torch.equal(scores[counter], tree["iter"])
    ]
    return {name: scores[name].item() for names in now for name in names}
