"""States computed anew: a run goes on from a checkpoint, or from its seed, as it did the first time."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

from torch import nn

from purerun.history.origin import LOAD_FROM, loaded
from purerun.history.stretches import Stretch, fitted
from purerun.recipe import Recipe
from purerun.recipe.run import threads
from purerun.recipe.start import carried
from purerun.state import State


def replay(
    recipe: Recipe, stretches: Sequence[Stretch], state: State | None = None, *, ends: bool = False
) -> Generator[State, None, None]:
    """Compute states again: the one to begin with, then one an iteration.

    Where the recipe was changed, the state of that iteration is the one with which the run went on.
    Each is good until the next one is taken; `state.hold()` keeps it.

    Args:
        recipe: of the recipe file; what the run had set otherwise is set again.
        stretches: which recipes were in force, see `purerun.history.stretches`.
        state: where to begin; None for the seed.
        ends: also give the state of such an iteration as it was before the change.

    Raises:
        Gone: the weights that the run began with are.
        HistoryError: the recipe is not the one that made the run.
        RecipeError: the program is not the one that made the state.

    >>> from purerun.recipe.resolved import flat, resolved
    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=2,
    ...     device="cpu",
    ... )
    >>> [int(state["iter"]) for state in replay(recipe, [Stretch(3, flat(resolved(recipe)))])]
    [0, 1, 2, 3]
    """
    for stretch in stretches:
        value, module, state = begun(recipe, stretch, state)
        left_out = not ends and stretch is not stretches[-1]
        if not (left_out and int(state["iter"]) == stretch.stop):
            yield state
        with closing(going_on(value, module, stretch, state)) as states:
            for state in states:
                if not (left_out and int(state["iter"]) == stretch.stop):
                    yield state


def final(states: Iterable[State]) -> State:
    """Go through states to the last one.

    >>> int(final(pr.testing.counted(iter=iter) for iter in (1, 2))["iter"])
    2
    """
    (state,) = deque(states, maxlen=1)
    return state


def begun(recipe: Recipe, stretch: Stretch, state: State | None) -> tuple[Recipe, nn.Module, State]:
    """Begin a stretch: with its recipe, a module, and the run's first state or one with the changes made there."""
    value = fitted(recipe, stretch.recipe)
    with threads(value.threads):
        module = value.module()
        return value, module, _first(value, module, stretch, state)


def going_on(recipe: Recipe, module: nn.Module, stretch: Stretch, state: State) -> Generator[State, None, None]:
    """Compute the states of a stretch after its first one, as the packaged runner does."""
    if int(state["iter"]) >= stretch.stop:
        return
    with closing(recipe.train_loop(module, lease=True)(state, recipe.train)) as states:
        del state
        while (after := _next(states, recipe)) is not None:
            ended = int(after["iter"]) >= stretch.stop
            yield after
            if ended:
                return


def _first(recipe: Recipe, module: nn.Module, stretch: Stretch, state: State | None) -> State:
    if state is None:
        return recipe.init(module)
    step = recipe.train_step(module)
    for change in stretch.changes:
        if change.path == LOAD_FROM:
            return loaded(recipe, step, module, change.new)
    return carried(state, recipe, step, stretch.changes, where=f"the state of iteration {int(state['iter'])}")


def _next(states: Iterator[State], recipe: Recipe) -> State | None:
    # Around each step and not around the loop: two runs may be replayed by turns.
    with threads(recipe.threads):
        return next(states, None)
