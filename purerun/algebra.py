"""States as vectors: weights between two states, means of several, parts of one in another, and other names.

Each function makes a new state and changes none.  What is not weights (the optimizer, counters, chance) is the
first state's; names and shapes are compared before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from purerun.state import Draft, State, StateError, leaves, peek
from purerun.valid import is_number

WEIGHTS = ("params", "buffers")
"""The entries of a state that hold a model."""

_OTHER_NAMES = ("hyper", "scores", "metrics", "clip", "microbatch", "precision", "skip")
"""Entries whose names are not those of weights."""


def interpolate(first: State, second: State, weight: float | Tensor) -> State:
    """Go from one state's weights towards another's: `(1 - weight) * first + weight * second`.

    Beyond 0 and 1 it goes on in the same direction.  Buffers that are no floating-point numbers are the first one's.

    Raises:
        StateError: the two have weights of other names or shapes.
        ValueError: `weight` is no number.

    >>> a, b = (pr.testing.counted(params={"w": torch.full((2,), x)}, buffers={}) for x in (0.0, 1.0))
    >>> interpolate(a, b, 0.25)["params", "w"].tolist()
    [0.25, 0.25]
    """
    _same(first, second)
    if not (is_number(weight) or (isinstance(weight, Tensor) and not weight.ndim)):
        raise ValueError(f"expected a finite number to interpolate by, got {weight!r}")
    return _combined(first, (second,), lambda one, other: torch.lerp(one, other, weight))


def average(*states: State, weights: Sequence[float] | None = None) -> State:
    """Take the mean of the weights of several states: a model soup (Wortsman et al., arXiv:2203.05482).

    Args:
        states: one at least.
        weights: how much each counts; alike unless given.

    Raises:
        StateError: they have weights of other names or shapes.
        ValueError: there is no state, or not one weight for each, or their sum is 0.

    >>> states = [pr.testing.counted(params={"w": torch.full((2,), x)}, buffers={}) for x in (0.0, 1.0, 5.0)]
    >>> average(*states)["params", "w"].tolist(), average(*states, weights=[1, 1, 0])["params", "w"].tolist()
    ([2.0, 2.0], [0.5, 0.5])
    """
    if not states:
        raise ValueError("expected states to average, got none")
    share = [1.0] * len(states) if weights is None else [float(weight) for weight in weights]
    total = sum(share)
    if len(share) != len(states) or not total or not all(map(is_number, share)):
        raise ValueError(
            f"expected a weight for each of {len(states)} states, finite and with a sum other than 0, got {weights}"
        )
    for state in states:
        _same(states[0], state)
    parts = [part / total for part in share]
    return _combined(states[0], states[1:], lambda *leaves: _mean(leaves, parts))


def graft(state: State, donor: State, *patterns: str) -> State:
    """Put some of a donor's weights into a state: those whose names match a glob pattern.

    Raises:
        StateError: a pattern matches nothing, or a weight has no counterpart of its shape.

    >>> a, b = (pr.testing.counted(params={"body.w": torch.full((1,), x), "head.w": torch.full((1,), x)}, buffers={})
    ...         for x in (0.0, 1.0))
    >>> grafted = graft(a, b, "head.*")
    >>> grafted["params", "body.w"].item(), grafted["params", "head.w"].item()
    (0.0, 1.0)
    """
    mine, theirs = dict(_weights(state)), dict(_weights(donor))
    chosen = _matching(theirs, patterns)
    for path in chosen:
        _alike(path, mine.get(path), theirs[path])
    return state.replace(_nested({path: theirs[path].to(mine[path].device) for path in chosen}))


def rename(state: State, names: Mapping[str, str]) -> State:
    """Give weights other names, in all entries that are kept by parameter (slots and averages too).

    Args:
        state: where.
        names: old name -> new name, or old prefix -> new prefix where both end with a dot.

    Raises:
        StateError: a name is not there, or two weights would have one name.

    >>> state = pr.testing.counted(params={"fc.w": torch.zeros(1)}, optim={"exp_avg": {"fc.w": torch.ones(1)}})
    >>> renamed = rename(state, {"fc.": "head."})
    >>> [*renamed["params"].names()], [*renamed["optim", "exp_avg"].names()]
    (['head.w'], ['head.w'])
    """
    known = {path[-1] for path, _ in _weights(state)}
    idle = [old for old in names if not any(_renamed(name, {old: ""}) != name for name in known)]
    if idle:
        raise StateError(f"expected names of weights among {sorted(known)[:8]}, got {idle[0]!r}")
    told = {name: _renamed(name, names) for name in known}
    twice = sorted({new for new in told.values() if [*told.values()].count(new) > 1})
    if twice:
        raise StateError(f"expected other names for the weights, but several would be `{twice[0]}`")
    by_name = [name for name, value in peek(state).items() if isinstance(value, State) and name not in _OTHER_NAMES]
    return state.exclude(*by_name).replace({name: _told(state[name], told) for name in by_name})


def freeze(state: State, *shares: str) -> State:
    """Freeze shares of the parameters (`pr.optim.split`): they and their slots stay until `thaw`.

    Raises:
        StateError: there is no such share.

    >>> state = pr.testing.counted(hyper={"backbone.active": torch.tensor(1.0)})
    >>> freeze(state, "backbone")["hyper", "backbone.active"].item()
    0.0
    """
    return _activated(state, shares, 0.0)


def thaw(state: State, *shares: str) -> State:
    """Let shares of the parameters move again.

    Raises:
        StateError: there is no such share.

    >>> state = pr.testing.counted(hyper={"backbone.active": torch.tensor(0.0)})
    >>> thaw(state, "backbone")["hyper", "backbone.active"].item()
    1.0
    """
    return _activated(state, shares, 1.0)


def _activated(state: State, shares: tuple[str, ...], value: float) -> State:
    known = [name for name in state["hyper"].names() if name.endswith(".active")]
    if absent := [share for share in shares if f"{share}.active" not in known]:
        there = [name.removesuffix(".active") for name in known]
        raise StateError(
            f"expected shares among {there}, got {absent}; share the parameters out with pr.optim.split(...)"
        )
    return state.replace(hyper={f"{share}.active": value for share in shares})


def _weights(state: State) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    return ((path, leaf) for path, leaf in leaves(state) if path[0] in WEIGHTS)


def _combined(first: State, others: Sequence[State], how: Callable[..., Any]) -> State:
    """Combine the floating-point weights of states, each in its own dtype."""
    rest = [dict(_weights(other)) for other in others]
    new = {
        path: how(leaf, *(each[path].to(leaf.device) for each in rest))
        for path, leaf in _weights(first)
        if leaf.is_floating_point() or leaf.is_complex()
    }
    return first.replace(_nested(new))


def _mean(leaves: Sequence[Tensor], parts: Sequence[float]) -> Tensor:
    # Half precision would round away what a state adds to many.
    wide = torch.promote_types(leaves[0].dtype, torch.float32)
    total = torch.zeros_like(leaves[0], dtype=wide)
    for leaf, part in zip(leaves, parts, strict=True):
        total.add_(leaf.to(wide), alpha=part)
    return total.to(leaves[0].dtype)


def _same(first: State, second: State) -> None:
    for state in (first, second):
        if not isinstance(state, State):
            raise StateError(f"expected states, each as an argument of its own, got {type(state).__name__}")
    mine, theirs = dict(_weights(first)), dict(_weights(second))
    if odd := sorted(set(mine) ^ set(theirs)):
        raise StateError(f"expected states of one model, but `{'/'.join(odd[0])}` is in one of them only")
    for path, leaf in mine.items():
        _alike(path, leaf, theirs[path])


def _alike(path: tuple[str, ...], mine: Tensor | None, theirs: Tensor) -> None:
    if mine is None or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        have = "nothing" if mine is None else f"{mine.dtype} {list(mine.shape)}"
        raise StateError(
            f"expected weights alike at `{'/'.join(path)}`, got {have} and {theirs.dtype} {list(theirs.shape)}"
        )


def _matching(weights: Mapping[tuple[str, ...], Tensor], patterns: tuple[str, ...]) -> list[tuple[str, ...]]:
    for pattern in patterns:
        if not any(fnmatchcase(path[-1], pattern) for path in weights):
            names = [path[-1] for path in weights][:8]
            raise StateError(f"expected {pattern!r} to match a weight of the donor, such as {names}; got none")
    return [path for path in weights if any(fnmatchcase(path[-1], pattern) for pattern in patterns)]


def _renamed(name: str, names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    # The longest prefix says most.
    prefixes = sorted((old for old in names if old.endswith(".") and name.startswith(old)), key=len)
    return names[prefixes[-1]] + name.removeprefix(prefixes[-1]) if prefixes else name


def _told(value: Any, told: Mapping[str, str]) -> Any:
    if isinstance(value, Tensor):
        return value
    # Counters and shares of the optimizer have names of their own, which may be those of weights.
    by_weight = told.keys() >= set(value.keys()) and all(isinstance(inner, Tensor) for inner in value.values())
    return {told[name] if by_weight else name: _told(inner, told) for name, inner in value.items()}


def _nested(flat: Mapping[tuple[str, ...], Tensor]) -> Draft:
    tree: Draft = {}
    for (*above, name), leaf in flat.items():
        place = tree
        for each in above:
            place = place.setdefault(each, {})
        place[name] = leaf
    return tree
