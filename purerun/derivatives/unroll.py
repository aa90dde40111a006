"""Many steps as one pure function, to differentiate: by hyper-parameters, by first weights, by data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils import _pytree as pytree

from purerun.derivatives.twice import flows, twice
from purerun.state import REPORT, Draft, State, lazy_clone, leaves, peek, seal
from purerun.valid import is_whole

Advance: TypeAlias = Callable[[State, Any], State]
Path: TypeAlias = tuple[str, ...]


def unroll(step: Advance, state: State, batches: Iterable[Any], *, recompute: int = 0) -> State:
    """Make the state after one step on each batch; a function that `torch.func` differentiates.

    The step must have `engine="func"`.  Inside of `torch.func.grad`, `state.replace` says by what one
    differentiates: `hyper` (the learning rate and the other leaves of `state["hyper"]`; schedules apply to
    them), `params` (the first weights); what is in the batches can be differentiated by as well.

    Reverse mode keeps what each step has computed.  With `recompute=n`, only the states after every n steps are
    kept, and what lies between is computed again in the backward pass: the memory of n steps and of `k / n` states,
    at the price of a second forward pass.  What one differentiates by must then come in through the state or the
    batches, not through a closure, and buffers count as constants.

    Args:
        step: `step(state, batch) -> State`: a step, or a plain function of several.
        state: where to begin.
        batches: one for each step.
        recompute: steps of a stretch that is computed twice; 0 to keep everything.

    Raises:
        ValueError: `recompute` is no number of steps, or something else is differentiated by than it allows.

    >>> step = pr.TrainStep(
    ...     torch.nn.Linear(1, 1, bias=False), lambda m, x: m(x).square().mean(), pr.optim.SGD(lr=0.1), engine="func"
    ... )
    >>> state, x = step.init().replace(params={"weight": [[1.0]]}), torch.ones(1, 1)
    >>> def left(hyper):  # the weight shrinks by 1 - 2 lr a step, so the loss after 3 steps is (1 - 2 lr)**6
    ...     return pr.loss_at(step, pr.unroll(step, state.replace(hyper=hyper), [x] * 3), x)
    >>> derivative = torch.func.grad(left)({"lr": state["hyper", "lr"]})
    >>> float(derivative["lr"]), -12 * 0.8**5
    (-3.93216, -3.93216)
    """
    if not is_whole(recompute) or recompute < 0:
        raise ValueError(f"expected recompute to be a number of steps, at least 0, got {recompute!r}")
    for stretch in _stretches(batches, recompute or 1):
        state = _recomputed(step, state, stretch) if recompute else _folded(step, state, stretch)
    return state


def _folded(step: Advance, state: State, batches: Sequence[Any]) -> State:
    for batch in batches:
        state = step(state, batch)
    return state


def _stretches(batches: Iterable[Any], count: int) -> Iterator[list[Any]]:
    source = iter(batches)
    while stretch := list(islice(source, count)):
        yield stretch


def _recomputed(step: Advance, state: State, batches: list[Any]) -> State:
    """Fold the step over a stretch whose inner values are not kept for the backward pass."""
    data, structure = pytree.tree_flatten(batches)
    places = [place for place, leaf in enumerate(data) if isinstance(leaf, Tensor)]
    paths, entries = zip(*leaves(state), strict=True)
    ends: list[State] = []

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        read = data.copy()
        for place, tensor in zip(places, tensors[len(paths) :], strict=True):
            read[place] = tensor
        begun = {
            path: leaf if _moves(path, leaf) else leaf.detach() for path, leaf in zip(paths, tensors, strict=False)
        }
        end = _folded(step, seal(_filled(state, begun)), pytree.tree_unflatten(read, structure))
        if not ends:
            ends.append(end)
        return tuple(leaf for path, leaf in leaves(end) if _moves(path, leaf))

    moved = iter(twice(run, *entries, *(data[place] for place in places)))
    after = {path: next(moved) if _moves(path, leaf) else leaf for path, leaf in leaves(ends[0])}
    return seal({**_filled(ends[0], after), REPORT: ends[0][REPORT]})


def _moves(path: Path, leaf: Tensor) -> bool:
    """Say whether a derivative goes through an entry of the state; torch has none of the buffers that layers write."""
    return flows(leaf) and path[0] != "buffers"


def _filled(like: State, flat: Mapping[Path, Tensor], path: Path = ()) -> Draft:
    """Make a draft with the names of a state, of other leaves; without a report."""
    return {
        name: _filled(value, flat, (*path, name)) if isinstance(value, State) else lazy_clone(flat[(*path, name)])
        for name, value in peek(like).items()
        if (*path, name) != (REPORT,)
    }
