"""Population-based training: the next generation of a population, as a function of states, scores and a key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from purerun.population import SEEDS, Path, choose, counted
from purerun.random import Key
from purerun.state import Draft, State, StateError, leaves
from purerun.valid import is_number

_BELOW = (0.0, 1.0 - 1e-4)
_RANGES = {"dropout": (0.0, 1.0), **dict.fromkeys(("momentum", "beta1", "beta2", "alpha"), _BELOW)}
"""Where exploring ends by itself; a mean that keeps all it has never moves."""


def evolve(
    state: State,
    scores: Tensor | Sequence[float],
    key: Key,
    *,
    hyper: Sequence[str] = ("lr",),
    share: float = 0.25,
    factors: Sequence[float] = (0.8, 1.25),
    within: Mapping[str, tuple[float, float]] | None = None,
) -> State:
    """Make the next generation of population-based training (Jaderberg et al., 2017), by truncation selection.

    The worst members become copies of the best (exploit), with hyper-parameters that are moved by a factor
    drawn at random (explore).  Chance stays with the place: with seeds of their own (`pr.Vmap(seeds="own")`), a copy
    draws other masks than its model.

    Args:
        state: a population.
        scores: one for each member, the larger the better; NaN is the worst.
        key: what the draws depend on, such as `pr.Key.of(seed, "evolve", generation)`.
        hyper: which hyper-parameters are explored.
        share: how many of the members are replaced, rounded down; at most a half.
        factors: what one of is drawn for each copy and hyper-parameter.
        within: the least and the largest value that exploring gives some hyper-parameters; `dropout` stays in [0, 1],
            momenta (`momentum`, `beta1`, ...) below 1.

    Raises:
        StateError: the state is no population, or has no such hyper-parameter.
        ValueError: the scores, the share, the factors, the key or the ranges do not fit.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(), engine="func")
    >>> population = pr.wrap(step, pr.Vmap(4, hyper={"lr": [0.1, 0.2, 0.4, 0.8]})).init()
    >>> evolve(population, torch.tensor([0.5, 0.9, 0.7, 0.1]), Key.of(0), factors=[2.0])["hyper", "lr"].tolist()
    [0.1, 0.2, 0.4, 0.4]
    """
    count = counted(state)
    scores = torch.as_tensor(scores)
    if not factors or not isinstance(key, Key):
        raise ValueError(
            f"expected at least one factor, and a key such as pr.Key.of(0, 'evolve', 3), got {factors!r} and {key!r}"
        )
    if scores.shape != (count,) or not 0 <= share <= 0.5:
        raise ValueError(
            f"expected {count} scores, one for each member, and a share between 0 and 0.5, "
            f"got scores of shape {list(scores.shape)} and share={share}"
        )
    ranked = scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf).argsort(descending=True, stable=True).tolist()
    replaced = math.floor(count * share + 1e-9)  # 0.29 of 100 are 29
    copies = dict(zip(ranked[count - replaced :], ranked[:replaced], strict=True))
    after = choose(state, [copies.get(place, place) for place in range(count)])
    ranges = {**_RANGES, **_checked(within or {}, hyper)}
    moved = {path: _explored(after, path, copies, key, factors, ranges) for path in _paths(state, hyper)}
    return after.replace({SEEDS: state[SEEDS], "hyper": _nested(moved)})


def _checked(within: Mapping[str, tuple[float, float]], hyper: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    for name, ends in within.items():
        fits = isinstance(ends, tuple | list) and len(ends) == 2 and all(map(is_number, ends)) and ends[0] <= ends[1]
        if name not in hyper or not fits:
            raise ValueError(
                f"expected ranges (least, largest) of hyper-parameters that are explored, {list(hyper)}, got {ends!r} "
                f"of {name!r}"
            )
    return within


def _explored(
    state: State,
    path: Path,
    copies: Mapping[int, int],
    key: Key,
    factors: Sequence[float],
    ranges: Mapping[str, tuple[float, float]],
) -> Tensor:
    leaf = state[("hyper", *path)].clone()
    chance = key.fold_in("explore", *path).generator()
    drawn = torch.randint(len(factors), (len(leaf),), generator=chance, device="cpu").tolist()
    name = ".".join(path)
    low, high = ranges.get(name) or _RANGES.get(path[-1], (-math.inf, math.inf))
    for place in copies:
        leaf[place] = min(max(leaf[place].item() * factors[drawn[place]], low), high)
    return leaf


def _paths(state: State, names: Sequence[str]) -> list[Path]:
    """Find hyper-parameters by the names under which steps report them."""
    known = {".".join(path): path for path, _ in leaves(state["hyper"])}
    if unknown := [name for name in names if name not in known]:
        raise StateError(f"expected hyper-parameters among {sorted(known)}, got {unknown}")
    return [known[name] for name in names]


def _nested(flat: Mapping[Path, Tensor]) -> Draft:
    tree: Draft = {}
    for path, leaf in flat.items():
        inner = tree
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = leaf
    return tree
