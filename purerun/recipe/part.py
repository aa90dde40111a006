"""What one step of a recipe learns by: a loss, an optimizer, and what stands around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs
from torch import nn

from purerun import program
from purerun.grad import Engine, LossFunction
from purerun.initial import Rule
from purerun.optim import Optimizer
from purerun.recipe import valid
from purerun.recipe.error import RecipeError, said
from purerun.schedule import Schedule
from purerun.step import Step
from purerun.train import TrainStep
from purerun.wrappers import Precision, Vmap, Wrapper, wrap


def schedules(given: Schedule | list[Schedule] | tuple[Schedule, ...]) -> tuple[Schedule, ...]:
    """Take one schedule for a list of one."""
    return tuple(given) if isinstance(given, list | tuple) else (given,)


@attrs.frozen(kw_only=True)
class Part:
    """One of several steps of a recipe: `Recipe(steps={"critic": Part(...), "generator": Part(...)})`.

    Attributes:
        loss: `loss(model, batch)`, see `TrainStep`; it is given the whole model.
        optimizer: what moves the parameters.
        params: which parameters are trained: one or several glob patterns.
        schedule: functions of progress applied to the optimizer's hyper-parameters.
        wrappers: what stands around the step, inner first.
        unused: "raise", or "zero" to take the gradient of an unused parameter as zero.
        nonfinite: "raise" when a loss is NaN or infinite, or "allow".
        engine: "autograd", or "func" for `pr.Vmap` to map over.

    Raises:
        TypeError: a field is of another kind.

    >>> Part(loss=print, optimizer=pr.optim.SGD(lr=0.1), params="critic.*").optimizer.lr
    0.1
    """

    loss: LossFunction = attrs.field(repr=program.describe, validator=valid.function("of model and batch"))
    optimizer: Optimizer = attrs.field(validator=valid.a(Optimizer, "pr.optim.SGD(lr=0.1)"))
    params: str | tuple[str, ...] = "*"
    schedule: tuple[Schedule, ...] = attrs.field(
        default=(), converter=schedules, validator=valid.each(Schedule, "pr.schedule.Cosine(period=30)")
    )
    wrappers: tuple[Wrapper, ...] = attrs.field(
        default=(), converter=tuple, validator=valid.each(Wrapper, "pr.EMA(0.999)")
    )
    unused: Literal["raise", "zero"] = "raise"
    nonfinite: Literal["raise", "allow"] = "raise"
    engine: Engine = "autograd"

    @property
    def precision(self) -> Precision | None:
        """The autocast that its loss is computed under, if any."""
        return next((each for each in self.wrappers if isinstance(each, Precision)), None)

    @property
    def sweeps(self) -> bool:
        """Whether it trains a population."""
        return any(isinstance(each, Vmap) for each in self.wrappers)

    def step(self, module: nn.Module, name: str = "", *, init: Sequence[Rule] = ()) -> Step:
        """Make the step, with its wrappers around it.

        Args:
            module: the model.
            name: where the step keeps its own when several share a state.
            init: rules for the first weights.

        Raises:
            RecipeError: the parts do not fit together.
        """
        try:
            step = TrainStep(
                module,
                self.loss,
                self.optimizer,
                schedule=self.schedule,
                init=tuple(init),
                name=name,
                params=self.params,
                unused=self.unused,
                nonfinite=self.nonfinite,
                engine=self.engine,
            )
            return wrap(step, *self.wrappers)
        except (ValueError, TypeError) as error:
            where = f"step {name!r}: " if name else ""
            raise RecipeError(f"{where}{said(error)}") from error
