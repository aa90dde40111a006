"""Populations: the states of many runs as one batched state, taken apart and put together again.

A population is a State whose leaves have a dimension more, the first, with an entry for each member.
Counters, the place in the data, the fingerprint and what hooks share are there once for all.  `seed` is where
the order of the data comes from, `seeds` (int64, shape [members]) is where each member's own chance does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any, TypeAlias

import torch
from torch import Tensor

from purerun.identity import read_bytes
from purerun.state import COUNTERS, REPORT, Draft, State, StateError, lazy_clone, leaves, peek, seal

SEEDS = "seeds"
"""The entry that only a population has."""

Path: TypeAlias = tuple[str, ...]
Join: TypeAlias = Callable[[Path, list[Tensor]], Tensor]

_AGREED = (*COUNTERS, "fingerprint", "stream")
SHARED = (*_AGREED, "seed", "scores", REPORT)
"""Entries of a draft that no step inside of a sweep has for each member."""
_OF_ONE = ("params", "buffers", "optim", "hyper", "scores", REPORT)


def members(state: State | Draft) -> int:
    """Count the members of a population; 0 for the state of a single run."""
    tree = peek(state) if isinstance(state, State) else state
    return len(tree[SEEDS]) if SEEDS in tree else 0


def names(name: str, count: int) -> list[str]:
    """Name the entries of a leaf that has one for each member.

    >>> names("loss", 2)
    ['loss[0]', 'loss[1]']
    """
    return [f"{name}[{place}]" for place in range(count)]


def spread(values: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Give each member's entry a name of its own, where there is one number for each of `count` members, if any.

    >>> spread({"accuracy": torch.tensor([0.5, 0.25]), "iter": torch.tensor(7)}, 2)
    {'accuracy[0]': tensor(0.5000), 'accuracy[1]': tensor(0.2500), 'iter': tensor(7)}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        each = count and isinstance(value, Tensor) and value.shape == (count,)
        flat |= dict(zip(names(name, count), value, strict=True)) if each else {name: value}
    return flat


def stack(states: Iterable[State], *, like: State | None = None) -> State:
    """Make one population of the states of single runs.

    Their counters must agree.  The order of the data is that of the first one's seed; chance stays each one's own.

    Args:
        states: of one program, at one iteration.
        like: a state of the step that is to go on, `sweep.init()`: needed where a wrapper keeps numbers, which
            are shared if it stands around `pr.Vmap` and each member's own if it stands inside.

    Raises:
        StateError: the states do not fit together.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> pair = stack([step.init(seed=3), step.init(seed=5)])
    >>> pair["seeds"].tolist(), pair["params", "weight"].shape, pair["hyper", "lr"].tolist()
    ([3, 5], torch.Size([2, 1, 2]), [0.1, 0.1])
    """
    states = list(states)
    if not states:
        raise StateError("expected at least one state to stack, got none")
    for state in states:
        if not isinstance(state, State) or members(state):
            got = f"a population of {members(state)}" if isinstance(state, State) else type(state).__name__
            raise StateError(f"expected states of single runs, got {got}; take it apart first, with pr.unstack(state)")
    trees = [peek(state) for state in states]
    if any(set(peek(tree[REPORT])) != set(peek(trees[0][REPORT])) for tree in trees):
        trees = [{**tree, REPORT: {}} for tree in trees]
    return seal(stacked(trees, None if like is None else dict(leaves(like))))


def stacked(trees: Sequence[Mapping[str, Any]], like: Mapping[Path, Tensor] | None = None) -> Draft:
    """Stack drafts, as `stack` does states."""

    def join(path: Path, parts: list[Tensor]) -> Tensor:
        if path == ("seed",):
            return parts[0].clone()
        return _agreed(path, parts) if _is_shared(path, parts[0], like) else _stacked(path, parts)

    return {**_joined(trees, join), SEEDS: torch.stack([tree["seed"] for tree in trees])}


def unstack(state: State) -> tuple[State, ...]:
    """Make the state of each member, as one of a single run: the plain step goes on from it.

    Its chance is its own seed's.  So is its order of the data from then on: to read on in the order of the
    population, give the loader an `Order` that does not go by the seed.

    Raises:
        StateError: the state is no population.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> states = [step.init(seed=3), step.init(seed=5)]
    >>> [pr.digest(state) for state in unstack(stack(states))] == [pr.digest(state) for state in states]
    True
    """
    count = counted(state)
    seeds = peek(state)[SEEDS]
    return tuple(seal({**_taken(state, place, count), "seed": seeds[place].clone()}) for place in range(count))


def choose(state: State, places: Sequence[int] | Tensor) -> State:
    """Make the population of some members, in this order; one may be there twice.

    Raises:
        StateError: the state is no population, or has no such member.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> choose(stack([step.init(seed) for seed in range(4)]), [3, 0])["seeds"].tolist()
    [3, 0]
    """
    count = counted(state)
    try:
        numbers = [index(place) for place in (places.tolist() if isinstance(places, Tensor) else places)]
    except TypeError:
        numbers = []
    if not numbers or not all(0 <= place < count for place in numbers):
        raise StateError(f"expected members among 0 to {count - 1}, and at least one, got {places}")
    chosen = torch.tensor(numbers, device="cpu")
    seeds = peek(state)[SEEDS]
    return seal({**_taken(state, chosen, count), "seed": lazy_clone(peek(state)["seed"]), SEEDS: seeds[chosen]})


def counted(state: State) -> int:
    """Count the members of a population.

    Raises:
        StateError: it is none.
    """
    if not isinstance(state, State) or not members(state):
        raise StateError(
            "expected a population, got "
            + ("the state of a single run" if isinstance(state, State) else type(state).__name__)
            + "; make one with pr.stack(states), or with pr.wrap(step, pr.Vmap(n)).init(seed)"
        )
    return members(state)


def _taken(state: State, which: int | Tensor, count: int) -> Draft:
    """Take one member, or some, out of each leaf that has an entry for each."""

    def take(path: Path, parts: list[Tensor]) -> Tensor:
        (leaf,) = parts
        if path[0] in _AGREED or not leaf.ndim or len(leaf) != count:
            return lazy_clone(leaf)
        return leaf[which if isinstance(which, int) else which.to(leaf.device)].clone()

    tree = {name: value for name, value in peek(state).items() if name not in (SEEDS, "seed")}
    return _joined([tree], take)


def _joined(trees: Sequence[Mapping[str, Any]], join: Join, path: Path = ()) -> Draft:
    """Walk over trees of the same names at once."""
    _same_names(trees, path)
    joined: Draft = {}
    for name, first in trees[0].items():
        where, parts = (*path, name), [tree[name] for tree in trees]
        if isinstance(first, Tensor):
            joined[name] = join(where, parts)
        else:
            joined[name] = _joined([peek(part) if isinstance(part, State) else part for part in parts], join, where)
    return joined


def _same_names(trees: Sequence[Mapping[str, Any]], path: Path) -> None:
    odd = set().union(*trees) - set(trees[0]).intersection(*trees)
    if odd:
        raise StateError(
            f"expected states with the same entries, but {sorted(odd)[:4]} in `{'/'.join(path) or 'the state'}` are "
            "not in all of them; stack states of one program"
        )


def _is_shared(path: Path, leaf: Tensor, like: Mapping[Path, Tensor] | None) -> bool:
    if path[0] in _AGREED or (path[0] == "scores" and path[-1].endswith("iter")):
        return True
    if leaf.ndim or path[0] in _OF_ONE or len(path) > 2:
        return False
    if like is None:
        raise StateError(
            f"expected to know whether the number `{'/'.join(path)}` is each member's own or shared by all; give a "
            "state of the step that goes on: pr.stack(states, like=sweep.init())"
        )
    return path in like and like[path].shape == leaf.shape


def _stacked(path: Path, parts: list[Tensor]) -> Tensor:
    first = parts[0]
    for place, part in enumerate(parts):
        if part.shape != first.shape or part.dtype != first.dtype:
            raise StateError(
                f"expected states alike at `{'/'.join(path)}`, got {first.dtype} {list(first.shape)} in the first and "
                f"{part.dtype} {list(part.shape)} in number {place}; stack states of one program"
            )
    return torch.stack(parts)


def _agreed(path: Path, parts: list[Tensor]) -> Tensor:
    for place, part in enumerate(parts):
        if part.shape != parts[0].shape or read_bytes(part) != read_bytes(parts[0]):
            raise StateError(
                f"expected states that agree in `{'/'.join(path)}`, which members share, but number {place} has "
                "another one than the first; stack states of one program that have come equally far"
            )
    return lazy_clone(parts[0])
