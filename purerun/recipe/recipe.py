"""A whole run as one frozen value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import attrs
import torch
from torch import nn

from purerun import program
from purerun.checkpoint import Best, bests
from purerun.data import Source, as_loader
from purerun.evaluate import ValStep, first_entry
from purerun.grad import Engine, LossFunction
from purerun.hooks import Hook, Validate, When, every
from purerun.initial import Fresh, Rule
from purerun.loop import TrainLoop, ValLoop
from purerun.metrics import Metric
from purerun.optim import Optimizer
from purerun.random import Key
from purerun.recipe import valid
from purerun.recipe.alternation import Alternate, Alternation, Learner, in_turn
from purerun.recipe.error import RecipeError
from purerun.recipe.module import Module
from purerun.recipe.part import Part, schedules
from purerun.schedule import Schedule
from purerun.sinks.due import Due, due
from purerun.state import State
from purerun.wrappers import Wrapper


def _several(given: str | Best | list[str | Best] | tuple[str | Best, ...]) -> tuple[str | Best, ...]:
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _rules(given: Rule | list[Rule] | tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(given) if isinstance(given, list | tuple) else (given,)


def _source(given: Any) -> Source | None:
    return None if given is None else as_loader(given)


def _names(_: Any, attribute: attrs.Attribute[Any], steps: Mapping[str, Part]) -> None:
    for name in steps:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"expected steps with names such as 'critic', got {name!r}")


@attrs.frozen(kw_only=True)
class Recipe:
    """A run from its seed to its end: what to train, on what, how, how long, and what to write down.

    A recipe file ends with `recipe = pr.Recipe(...)`.  Its parts are values; only `module()`
    makes something with weights, and always the same for the same seed.

    Several models and optimizers are several steps that share one state: `model` makes a module that holds
    all models (an `nn.ModuleDict`, say), and `steps` says which step learns what.  On each batch the steps are called
    one after the other, or as `alternate` calls them.  Each call counts as an iteration, so give `iters`, and
    whens that count iterations, as multiples of the calls on a batch.

    Attributes:
        model: what makes the module.
        init: rules for the first weights (see `purerun.initial`); parameters that no rule is about begin as the
            module makes them.  They are looked at when a run begins, and never when it goes on.
        loss: `loss(model, batch)`, see `TrainStep`.
        train: what to train on: a Loader, or any iterable of batches.
        val: what to validate on during training; None for no validation.
        test: what `purerun test` judges on.
        optimizer: what moves the parameters.
        schedule: functions of progress applied to the optimizer's hyper-parameters.
        wrappers: what stands around the step, inner first.
        params: which parameters are trained: one or several glob patterns.
        unused: "raise", or "zero" to take the gradient of an unused parameter as zero.
        nonfinite: "raise" when a loss is NaN or infinite, or "allow".
        engine: "autograd", or "func" for `pr.Vmap` to map over; each member is then the run with its seed.
        steps: name -> `pr.Part`, for several steps; each says for itself what `loss` to `engine` say for one.
        alternate: `alternate(steps, state, batch)` -> state, which calls the steps by their names; None for one after
            the other.
        epochs: stop after so many; either this or `iters`.
        iters: stop after so many iterations.
        metrics: name -> metric, for validation and test.  With `pr.Precision` among the wrappers, the model is
            judged under the autocast that it is trained under (of several steps, if they have the same one).
        forward: `forward(model, batch)` -> what the metrics are given as output.
        weights: which entry of the state is judged: "" for the trained weights, or "ema"; "ema/critic" is that of one
            of several steps.
        validate: when to validate: "1 epoch", "500 iters", "last", or a `When`.
        hooks: further functions of states, run after the validation.
        log: when to write a line of the log.
        checkpoint: when to save: "1 epoch", "500 iters", "10 minutes", or several of these; the end of a run and a
            stop are saved in any case.
        keep: how many checkpoints to keep, the newest; None for all.
        best: scores whose best checkpoint is kept too; "auto" is the first of the metrics.
        publish: plain weights to write at the run's end: "params", "ema", "ema/critic", or "" for none.
        on_save_error: "stop" when the disk takes no checkpoint or no line of the log, or "warn" and go on.
        seed: where all chance of the run comes from.
        device: "cpu", "cuda:0", ...; "auto" is the machine's accelerator, or the CPU.
        threads: of the CPU; None is torch's own choice, which is one for each core.  Sums of floats
            depend on it: with a number, machines of all sizes compute the same bits.

    Raises:
        ValueError: fields that contradict each other.

    >>> net = pr.Module(torch.nn.Linear, in_features=2, out_features=1)
    >>> data = pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4)
    >>> recipe = Recipe(
    ...     model=net,
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=data,
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=2,
    ... )
    >>> module = recipe.module()
    >>> states = recipe.train_loop(module)(recipe.init(module), recipe.train)
    >>> [int(state["iter"]) for state in states]
    [1, 2, 3, 4]
    """

    model: Module = attrs.field(validator=valid.a(Module, "pr.Module(Net, width=32)"))
    init_rules: tuple[Rule, ...] = attrs.field(
        default=(), alias="init", converter=_rules, validator=valid.each(Rule, "pr.initial.Kaiming('conv*')")
    )
    loss: LossFunction | None = attrs.field(default=None, repr=program.describe)
    train: Source = attrs.field(converter=as_loader)
    val: Source | None = attrs.field(default=None, converter=_source)
    test: Source | None = attrs.field(default=None, converter=_source)
    optimizer: Optimizer | None = None
    schedule: tuple[Schedule, ...] = attrs.field(default=(), converter=schedules)
    wrappers: tuple[Wrapper, ...] = attrs.field(default=(), converter=tuple)
    params: str | tuple[str, ...] = "*"
    unused: Literal["raise", "zero"] = "raise"
    nonfinite: Literal["raise", "allow"] = "raise"
    engine: Engine = "autograd"
    steps: Mapping[str, Part] = attrs.field(
        factory=dict, converter=dict, validator=[valid.each(Part, "pr.Part(loss=..., optimizer=...)"), _names]
    )
    alternate: Alternate | None = attrs.field(
        default=None,
        repr=program.describe,
        validator=attrs.validators.optional(valid.function("of steps, state and batch")),
    )
    epochs: int | None = None
    iters: int | None = None
    metrics: Mapping[str, Metric] = attrs.field(
        factory=dict, converter=dict, validator=valid.each(Metric, "pr.metrics.Accuracy()")
    )
    forward: Callable[[nn.Module, Any], Any] = attrs.field(default=first_entry, repr=program.describe)
    weights: str = ""
    validate: When = attrs.field(default="1 epoch", converter=every)
    hooks: tuple[Hook, ...] = attrs.field(
        default=(), converter=tuple, validator=valid.each(Hook, 'pr.hooks.ReduceOnPlateau("loss")')
    )
    log: When = attrs.field(default="50 iters", converter=every)
    checkpoint: Due = attrs.field(default="1 epoch", converter=due)
    keep: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    best: tuple[str | Best, ...] = attrs.field(default=(), converter=_several)
    publish: str = ""
    on_save_error: Literal["stop", "warn"] = attrs.field(
        default="stop", validator=attrs.validators.in_(("stop", "warn"))
    )
    seed: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.lt(2**63)])
    device: str = attrs.field(default="auto", validator=valid.device)
    threads: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))

    def __attrs_post_init__(self) -> None:
        self._refuse_both()
        _ = self.parts  # says what is wrong with the one that the fields are
        if (self.epochs is None) == (self.iters is None):
            got = "neither" if self.iters is None else f"epochs={self.epochs} and iters={self.iters}"
            raise ValueError(f"expected a recipe with either epochs or iters, got {got}; set the other to None")
        limit = self.epochs if self.iters is None else self.iters
        if limit is not None and limit < 1:
            raise ValueError(f"expected a recipe with at least 1 epoch or iteration, got {limit}")
        if self.val is not None and not self.metrics:
            raise ValueError('expected metrics to validate with, got none; give metrics={"accuracy": ...}, or no val')
        if self.bests and self.val is None:
            raise ValueError("expected val data to find the best checkpoint with, got val=None; give it, or best=()")

    def _refuse_both(self) -> None:
        fields = attrs.fields_dict(Recipe)
        given = [name for name in attrs.fields_dict(Part) if getattr(self, name) != fields[name].default]
        if self.steps and given:
            raise ValueError(f"expected either steps or {given[0]}, got both; say it in a pr.Part of steps")
        if self.alternate is not None and not self.steps:
            raise ValueError("expected steps={...} for alternate to call, got none; give them, or leave alternate out")

    @property
    def parts(self) -> Mapping[str, Part]:
        """What each step learns by: name -> part; the only one of an ordinary recipe is called ""."""
        return self.steps or {"": Part(**{name: getattr(self, name) for name in attrs.fields_dict(Part)})}

    def alone(self, name: str) -> Self:
        """Make the ordinary recipe of one of the steps.

        >>> loss = lambda model, batch: model(batch).mean()
        >>> part = pr.Part(loss=loss, optimizer=pr.optim.SGD(lr=0.1))
        >>> net = pr.Module(torch.nn.Linear, in_features=2, out_features=1)
        >>> recipe = pr.Recipe(model=net, steps={"a": part}, train=[torch.ones(4, 2)], epochs=1)
        >>> recipe.alone("a").optimizer
        SGD(groups=(), lr=0.1, ...)
        """
        own = {each: getattr(self.parts[name], each) for each in attrs.fields_dict(Part)}
        return attrs.evolve(self, steps={}, alternate=None, **own)

    @property
    def bests(self) -> tuple[Best, ...]:
        """The scores whose best checkpoint is kept.

        Raises:
            ValueError: whether more or less is better cannot be told from a name.
        """
        first = next(iter(self.metrics), "auto")
        return bests([first if each == "auto" else each for each in self.best])

    def here(self) -> Self:
        """Make the recipe for this machine: "auto" becomes the device that it means here."""
        if self.device != "auto":
            return self
        found = torch.accelerator.current_accelerator(check_available=True)
        return attrs.evolve(self, device=found.type if found else "cpu")

    def module(self) -> nn.Module:
        """Make the module on its device, with fresh weights: a function of the seed, the same on each device.

        Raises:
            RecipeError: this machine has no such device.
        """
        module = self.model.build(Key.of(self.seed, "init"))
        device = self.here().device
        try:
            return module.to(device)
        # torch raises an AssertionError where it was built without CUDA.
        except (AssertionError, RuntimeError) as error:
            raise RecipeError(f"expected a device that this machine has, got {device!r}: {error}") from error

    def train_step(self, module: nn.Module) -> Learner:
        """Make the training step, with its wrappers around it; several steps make one `Alternation`.

        Its own first weights are those of the module; `init` knows the rules.

        Raises:
            RecipeError: the parts do not fit together.
        """
        return self._learner(module, ())

    def _learner(self, module: nn.Module, rules: Sequence[Rule]) -> Learner:
        steps = {name: part.step(module, name, init=rules) for name, part in self.parts.items()}
        if not self.steps:
            (step,) = steps.values()
            return step
        return Alternation(steps, self.alternate or in_turn)

    def train_loop(self, module: nn.Module, *, lease: bool = False) -> TrainLoop:
        """Make the training loop, which validates too if there is something to validate on."""
        judge = () if self.val is None else (Validate(self.val_loop(module), self.val, every=self.validate),)
        step = self.train_step(module)
        steps = tuple(step.steps.values()) if isinstance(step, Alternation) else ()
        return TrainLoop(
            step, steps=steps, epochs=self.epochs, iters=self.iters, hooks=(*judge, *self.hooks), lease=lease
        )

    def val_loop(self, module: nn.Module) -> ValLoop:
        """Make the loop that judges a state: `scores = recipe.val_loop(module)(state, recipe.test)`."""
        first, *others = (part.precision for part in self.parts.values())
        precision = first if all(first == other for other in others) else None
        return ValLoop(
            ValStep(module, metrics=self.metrics, forward=self.forward, weights=self.weights, precision=precision)
        )

    def init(self, module: nn.Module) -> State:
        """Make the first state of the run: with the module's weights, and those that the rules say.

        Raises:
            RecipeError: the parts do not fit together.
            InitialError: a rule matches nothing, or something that it cannot fill.
            CheckpointError: weights that a rule takes from a file cannot be read.
        """
        # Each member of a sweep begins as a run with its seed does.
        own = (Fresh(self.model),) if any(part.sweeps for part in self.parts.values()) else ()
        return self._learner(module, (*own, *self.init_rules)).init(self.seed)

    def ended(self, state: State) -> bool:
        """Say whether a state is one of the run's end."""
        if self.iters is not None:
            return int(state["iter"]) >= self.iters
        return self.epochs is not None and int(state["epoch"]) >= self.epochs
