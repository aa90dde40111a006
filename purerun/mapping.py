"""A function of tensors, run once for all members of a population."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class SweepError(RuntimeError):
    """Something cannot be run for all members at once."""


def mapped(function: Callable[..., Any], *given: Any) -> Any:
    """Run a function of nested dicts of tensors for all members at once: `torch.vmap` over the first dimension.

    Raises:
        SweepError: it holds something that cannot be mapped.

    >>> mapped(lambda tree: {"sum": tree["a"].sum()}, {"a": torch.ones(2, 3)})
    {'sum': tensor([3., 3.])}
    """
    try:
        return _solid(torch.vmap(function, randomness="different")(*given))
    except (RuntimeError, NotImplementedError) as error:
        if told := _explained(error):
            raise told from error
        raise


def _solid(tree: Any) -> Any:
    """Give each member memory of its own, where all have got the same."""
    if isinstance(tree, Tensor):
        return tree if tree.stride(0) else tree.clone(memory_format=torch.contiguous_format)
    if type(tree) is dict:
        return {name: _solid(value) for name, value in tree.items()}
    return tuple(map(_solid, tree)) if type(tree) is tuple else tree_map_only(Tensor, _solid, tree)


_REASONS = (
    (r"rule not implemented for (\S+?)[;.]\s|do not yet support (\S+?)\.\s", "an operation that cannot be mapped"),
    (r"storage of BatchedTensorImpl|inplace update to a vmap", "an operation that cannot be mapped"),
    (r"calling \.item\(\)", "code that reads a tensor's value"),
    (r"data-dependent control flow", "code that decides by a tensor's value"),
    (r"inplace randomness", "a draw into a tensor that all members share"),
    (r"\(self, \*extra_args\) is not possible", "a write of members' values into a tensor that all share"),
)


def _explained(error: Exception) -> SweepError | None:
    """Say in one line what cannot be run for all members at once."""
    for pattern, what in _REASONS:
        if found := re.search(pattern, str(error)):
            name = next(filter(None, found.groups()), "") if found.groups() else ""
            return SweepError(
                f"expected a step that can be run for all members at once, got {what}{name and f': {name}'}; compute "
                "with torch.where, torch.rand and plain layers, put wrappers that count, skip or average around Vmap "
                "instead of into it, or train the members one by one"
            )
    return None
