"""The training step: a model, a loss, an optimizer and a schedule as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from purerun import batch as _batch
from purerun import grad, program
from purerun.bind import Binding, ModelError, is_abstract
from purerun.grad import WHOLE, Engine, Grads, LossFunction, Pass
from purerun.initial import Rule, begun
from purerun.naming import Naming
from purerun.optim import Bucket, Optimizer, partition
from purerun.optim.optimizer import Closure, Params
from purerun.population import SEEDS
from purerun.random import draws_elsewhere, keyed, keyed_everywhere
from purerun.schedule import Affine, Plan, Schedule
from purerun.state import Draft, StateError, lazy_clone
from purerun.step import HOST, Step, refuse_nonfinite
from purerun.valid import one_of


def _schedules(given: Schedule | list[Schedule] | tuple[Schedule, ...]) -> tuple[Schedule, ...]:
    schedules = tuple(given) if isinstance(given, list | tuple) else (given,)
    for schedule in schedules:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"expected schedules such as pr.schedule.Cosine(end=12), got {schedule!r}")
    return schedules


def _rules(given: Rule | list[Rule] | tuple[Rule, ...]) -> tuple[Rule, ...]:
    rules = tuple(given) if isinstance(given, list | tuple) else (given,)
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(f"expected rules such as pr.initial.Kaiming('conv*'), got {rule!r}")
    return rules


# The model and its parameters are said in other words; how a run begins is no part of how it goes on.
_NOT_SAID = ("model", "params", "nonfinite", "init_rules")


def _function(_: Any, attribute: Any, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"expected a loss function, called as loss(model, batch), got {value!r}")
    if isinstance(value, nn.Module) and [*value.parameters(), *value.buffers()]:
        raise TypeError(
            f"expected a loss without tensors of its own, got {type(value).__name__}, which has some; "
            "make it a part of the model (nn.ModuleDict), so that they are in the state"
        )


def _optimizer(_: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, Optimizer):
        raise TypeError(
            "expected an optimizer of purerun, such as pr.optim.SGD(lr=0.1) or "
            f"pr.optim.Torch(torch.optim.NAdam, lr=0.1), got {value!r}"
        )


@attrs.frozen(slots=False)
class TrainStep(Step):
    """A training step: `state = train_step(state, batch)`.

    Attributes:
        model: any nn.Module; it is run on the state's tensors and never changed.
        loss: `loss(model, batch)` -> a scalar, a dict of named terms, or `pr.Loss`.
        optimizer: what moves the parameters.
        schedule: functions of progress applied to the base hyper-parameters.
        init: rules for the first weights (see `purerun.initial`), a function of the seed; parameters that no rule
            is about begin with the module's own.
        engine: "autograd", or "func" to map over and differentiate through steps.
        name: where this step's optimizer and hyper-parameters live when several steps
            share a state.
        params: the trained parameters, as one or several glob patterns; a parameter that the
            module freezes (`requires_grad=False`) is never trained.
        unused: "raise", or "zero" to take the gradient of an unused parameter as zero.
        nonfinite: "raise" when the loss is NaN or infinite, or "allow".

    >>> import purerun as pr
    >>> step = pr.TrainStep(nn.Linear(2, 1), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1))
    >>> state = step.init(seed=0)
    >>> later = step(state, torch.ones(4, 2))
    >>> int(state["iter"]), int(later["iter"]), float(later["metrics", "lr"])
    (0, 1, 0.1)
    """

    model: nn.Module = attrs.field(eq=id, repr=lambda model: type(model).__name__)
    loss: LossFunction = attrs.field(repr=program.describe, validator=_function)
    optimizer: Optimizer = attrs.field(validator=_optimizer)
    schedule: tuple[Schedule, ...] = attrs.field(default=(), kw_only=True, converter=_schedules)
    init_rules: tuple[Rule, ...] = attrs.field(default=(), kw_only=True, alias="init", converter=_rules)
    engine: Engine = attrs.field(default="autograd", kw_only=True, validator=one_of("autograd", "func"))
    name: str = attrs.field(default="", kw_only=True)
    params: str | tuple[str, ...] = attrs.field(default="*", kw_only=True)
    unused: Literal["raise", "zero"] = attrs.field(default="raise", kw_only=True, validator=one_of("raise", "zero"))
    nonfinite: Literal["raise", "allow"] = attrs.field(
        default="raise", kw_only=True, validator=one_of("raise", "allow")
    )

    def __attrs_post_init__(self) -> None:
        names = self.optimizer.hyper()
        for schedule in self.schedule:
            if schedule.param not in names:
                raise ValueError(
                    f"expected a schedule of one of {sorted(names)}, which {type(self.optimizer).__name__} has, "
                    f"got {schedule!r} of {schedule.param!r}"
                )
        _ = self.buckets  # says what is wrong with the model or the groups now, not at the first step

    @property
    def slot(self) -> str:
        """The name of this step."""
        return self.name

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self._device

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.model

    @property
    def closes(self) -> bool:
        """Whether the optimizer asks for gradients at other parameters."""
        return self.optimizer.closes

    @property
    def mappable(self) -> bool:
        """Whether the engine is "func"."""
        return self.engine == "func"

    @cached_property
    def binding(self) -> Binding:
        """The module's slots."""
        binding = Binding(self.model)
        binding.wide = binding.wide or draws_elsewhere(self.loss)
        return binding

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """The names of the parameters that this step moves."""
        patterns = (self.params,) if isinstance(self.params, str) else self.params
        free = [name for name, param in self.binding.params.items() if param.requires_grad]
        chosen = tuple(name for name in free if any(fnmatchcase(name, pattern) for pattern in patterns))
        if not chosen:
            raise ModelError(
                f"expected parameters to train that match {self.params!r}, got none among "
                f"{free or 'no free parameter'}; "
                "change the pattern, or free some with requires_grad_(True)"
            )
        return chosen

    @cached_property
    def buckets(self) -> tuple[tuple[tuple[str, ...], dict[str, float]], ...]:
        """The trained names in as few groups as their multipliers, dtypes and devices allow."""
        return partition(self.optimizer.groups, self.model, self.trained)

    @cached_property
    def plan(self) -> Plan:
        """The schedules as one function of the counters."""
        return Plan(self.schedule)

    @cached_property
    def _device(self) -> torch.device:
        return self.binding.params[self.trained[0]].device

    def draft(self, seed: int) -> Draft:
        """Make the first draft, from the model's own weights and what the rules say."""
        fresh = begun(self.init_rules, self.model, seed)
        params = {name: fresh.get(name, param).detach().clone() for name, param in self.binding.params.items()}
        optim = self.optimizer.init({name: params[name] for name in self.trained})
        hyper = {
            name: torch.tensor(value, dtype=torch.float64, device="cpu")
            for name, value in self.optimizer.hyper().items()
        }
        return {
            "params": params,
            "buffers": {name: fresh.get(name, own).detach().clone() for name, own in self.binding.buffers.items()},
            "optim": {self.name: optim} if self.name else optim,
            "hyper": {self.name: hyper} if self.name else hyper,
            **{name: torch.zeros((), dtype=torch.int64, device="cpu") for name in ("epoch", "iter", "cursor")},
            "seed": torch.tensor(seed, dtype=torch.int64, device="cpu"),
            "scores": {},
            "fingerprint": self.fingerprint(),
            "metrics": {},
        }

    def read(self, draft: Draft, batch: Any, how: Pass = WHOLE) -> Grads:
        """Run the model on a batch under the key of this iteration, and differentiate."""
        if self._device.type != "cpu":
            batch = _batch.move(batch, self._device)
        grads = self._differentiate(draft, batch, draft["params"], draft["buffers"], how)
        return attrs.evolve(grads, recompute=self._closure(draft, batch, how)) if self.optimizer.closes else grads

    def _differentiate(self, draft: Draft, batch: Any, params: Draft, buffers: Draft, how: Pass) -> Grads:
        if HOST in draft:
            self._refuse_foreign_chance()
            return self._compute(batch, params, buffers, how)
        if SEEDS in draft:
            raise StateError(
                f"expected the state of a single run, got a population of {len(draft[SEEDS])}; take a member out "
                "of it, pr.unstack(state)[0], or wrap the step with pr.Vmap"
            )
        key = self.key(draft, how)
        if not (self.binding.watching or self.binding.wide):
            with keyed(key):
                return self._compute(batch, params, buffers, how)
        with keyed_everywhere(key) as chance:
            grads = self._compute(batch, params, buffers, how)
            self.binding.wide = self.binding.wide or chance.drew()
            return grads

    def _compute(self, batch: Any, params: Draft, buffers: Draft, how: Pass) -> Grads:
        return grad.compute(
            self.engine,
            self.binding,
            self.loss,
            batch,
            params,
            buffers,
            self.trained,
            unused=self.unused,
            scale=how.scale,
            autocast=how.autocast,
            within=how.within,
        )

    def _refuse_foreign_chance(self) -> None:
        if self.binding.wide:
            raise ModelError(
                "expected a model and a loss that draw from torch's generators only, but they use numpy's or Python's, "
                "which a compiled or mapped step would read just once; draw with torch"
            )

    def _closure(self, draft: Draft, batch: Any, how: Pass) -> Closure:
        """Make the function by which a line search looks at other parameters, under the same chance."""
        frozen = {name: lazy_clone(param) for name, param in draft["params"].items()}
        buffers = {name: lazy_clone(buffer) for name, buffer in draft["buffers"].items()}

        def look(params: Params) -> tuple[Tensor, Params]:
            tried = {name: lazy_clone(params.get(name, param).detach()) for name, param in frozen.items()}
            passing = {name: lazy_clone(buffer) for name, buffer in buffers.items()}
            grads = self._differentiate(draft, batch, tried, passing, how)
            return grads.metrics["loss"], grads.grads

        return look

    def host(self, draft: Draft) -> dict[str, Affine]:
        """Work out the maps of the schedules, where the counters stand."""
        return self.plan(int(draft["epoch"]), int(draft["iter"])) if self.schedule else {}

    def vet(self, draft: Draft, grads: Grads) -> None:
        """Refuse a loss that is NaN or infinite."""
        if self.nonfinite == "raise":
            refuse_nonfinite(grads)

    def write(self, draft: Draft, grads: Grads) -> None:
        """Move the parameters; say in the metrics which hyper-parameters were used."""
        params = draft["params"]
        slots = draft["optim"][self.name] if self.name else draft["optim"]
        buckets = self._buckets(draft)
        if self.engine == "autograd" and HOST not in draft:
            self.optimizer.write(params, grads.grads, slots, buckets, report=draft["metrics"], closure=grads.recompute)
            return
        trained = {name: params[name] for name in self.trained}
        moved, after = self.optimizer.trace(trained, grads.grads, slots, buckets, report=draft["metrics"])
        params.update(moved)
        slots.update(after)

    def note(self, draft: Draft, grads: Grads) -> None:
        """Report the hyper-parameters in force, in an iteration that has not used them too."""
        leaves = self._leaves(draft)
        first = "lr" if "lr" in leaves else next((schedule.param for schedule in self.schedule), None)
        if first is not None and self._told(first) not in draft["metrics"]:
            self._report(draft, leaves, draft[HOST] if HOST in draft else self.host(draft))

    def text(self) -> str:
        """Say the program of this step."""
        fields = [field for field in attrs.fields(TrainStep) if field.name not in _NOT_SAID]
        return "\n".join(
            [
                f"model: {program.architecture(self.model)}",
                *program.shapes(self.binding.params),
                *Naming.of(self.model).lines(),
                f"trained: {', '.join(self.trained)}",
                *(f"{field.name}: {program.describe(getattr(self, field.name))}" for field in fields),
            ]
        )

    def _buckets(self, draft: Draft) -> list[Bucket]:
        """Read the hyper-parameters in force, and report them."""
        leaves = self._leaves(draft)
        # Numbers for the kernels; the functional forms take the leaves, to map and differentiate by.
        traced = self.engine == "func" or HOST in draft
        if not traced and torch._C._functorch.maybe_current_level() is not None:
            raise StateError(
                "expected a step with engine='func' inside of a transform of torch.func, got engine='autograd', whose "
                "kernels read hyper-parameters as numbers; make it with TrainStep(..., engine='func')"
            )
        base = leaves if traced else {name: leaf.item() for name, leaf in leaves.items()}
        maps = draft[HOST] if HOST in draft else self.host(draft)
        self._report(draft, leaves, maps)
        return [Bucket(names, _scheduled(base, mult, maps)) for names, mult in self.buckets]

    def _report(self, draft: Draft, leaves: Draft, maps: Mapping[str, Affine]) -> None:
        for name in ("lr", *(name for name in maps if name != "lr")) if "lr" in leaves else maps:
            draft["metrics"][self._told(name)] = _used(leaves[name], maps.get(name))

    def _leaves(self, draft: Draft) -> Draft:
        return draft["hyper"][self.name] if self.name else draft["hyper"]

    def _told(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def _used(leaf: Tensor, scheduled: Affine | None) -> Tensor:
    """Make the value in force of a hyper-parameter: float64."""
    if scheduled is None:
        return lazy_clone(leaf)
    if is_abstract(leaf) or leaf.ndim:
        return scheduled(leaf)
    return torch.scalar_tensor(scheduled(leaf.item()), dtype=torch.float64, device="cpu")


def _scheduled(base: Mapping[str, float], mult: Mapping[str, float], maps: Mapping[str, Affine]) -> Mapping[str, float]:
    """Apply a group's factors to the base values, and the schedules to the result."""
    if not mult and not maps:
        return base
    values = {name: value * mult.get(name, 1.0) for name, value in base.items()} if mult else dict(base)
    for name, (scale, shift) in maps.items():
        values[name] = scale * values[name] + shift
    return values
