"""Several steps that share a state as one function of state and batch, for a loop to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
import torch

from purerun.recipe.error import RecipeError
from purerun.state import State
from purerun.step import Step, adopt, init, text

Alternate: TypeAlias = Callable[[Mapping[str, Step], State, Any], State]
"""How steps take turns on a batch: `alternate(steps, state, batch)` calls those that are due and gives the state."""


def in_turn(steps: Mapping[str, Step], state: State, batch: Any) -> State:
    """Call each step once on the batch, in their order."""
    for step in steps.values():
        state = step(state, batch)
    return state


@attrs.frozen
class Alternation:
    """Several steps that take turns: `state = alternation(state, batch)`.

    Attributes:
        steps: name -> step, of that name.
        alternate: which are called on a batch, in which order, how often.

    Raises:
        RecipeError: a step reads shards of a batch, which a loop gives to a step that stands alone.

    >>> models = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    >>> loss = lambda models, x: models["b"](models["a"](x)).mean()
    >>> steps = {
    ...     name: pr.TrainStep(models, loss, pr.optim.SGD(lr=0.1), name=name, params=f"{name}.*") for name in models
    ... }
    >>> both = Alternation(steps)
    >>> sorted(both(both.init(seed=0), torch.ones(3, 1))["metrics"].keys())
    ['a.loss', 'a.lr', 'b.loss', 'b.lr']
    """

    steps: Mapping[str, Step]
    alternate: Alternate = in_turn

    def __attrs_post_init__(self) -> None:
        for name, step in self.steps.items():
            if step.share is not None:
                raise RecipeError(
                    f"expected steps that take batches whole, got step {name!r}, which reads shards of them; "
                    "DataParallel stands around a step that is alone in its recipe"
                )

    def __call__(self, state: State, batch: Any) -> State:
        """Make the state after one batch."""
        return self.alternate(self.steps, state, batch)

    @property
    def trained(self) -> tuple[str, ...]:
        """The names of the parameters that any of the steps moves."""
        return tuple(dict.fromkeys(name for step in self.steps.values() for name in step.trained))

    @property
    def device(self) -> torch.device:
        """Where the steps work."""
        return next(iter(self.steps.values())).device

    @property
    def share(self) -> None:
        """Batches are taken whole."""

    def init(self, seed: int = 0) -> State:
        """Make the first state: the union of what the steps need."""
        return init(seed, *self.steps.values())

    def adopt(self, state: State) -> State:
        """Make a state of other steps fit these, see `Step.adopt`."""
        return adopt(state, *self.steps.values())

    def text(self) -> str:
        """Say the program of all steps."""
        return text(*self.steps.values())


Learner: TypeAlias = Step | Alternation
"""What a recipe learns by: one step, or several that take turns."""
