"""Steps that look and do not learn: validation, test and prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor, nn

from purerun import batch as _batch
from purerun import metrics as _metrics
from purerun import program
from purerun.bind import Binding, ModelError
from purerun.chance import Streams
from purerun.mapping import mapped
from purerun.metrics import Metric, Tallies
from purerun.population import SEEDS, members
from purerun.random import Key, draws_elsewhere, keyed, keyed_everywhere
from purerun.state import Draft, State, StateError, lazy_clone, peek


@runtime_checkable
class Around(Protocol):
    """What a forward pass is made inside of, such as the autocast of `pr.Precision`."""

    def around(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make the `with` block of a pass on a device."""


def _around(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and (isinstance(value, type) or not isinstance(value, Around)):
        raise TypeError(f"expected {attribute.name}=pr.Precision('bfloat16') or another such value, got {value!r}")


def first_entry(model: nn.Module, batch: Any) -> Any:
    """Call the model on the first entry of a batch."""
    return model(_batch.entry(batch, 0))


def averages(state: State) -> list[str]:
    """List the slots that hold weights as well, as that of `pr.EMA` does; of several steps, each one's.

    >>> ema = {"params": {}, "buffers": {}}
    >>> averages(pr.testing.counted(ema=ema, other={"count": torch.tensor(0)})), averages(
    ...     pr.testing.counted(ema={"critic": ema})
    ... )
    (['ema'], ['ema/critic'])
    """
    slots = {name: slot for name in state.names() if isinstance(slot := peek(state)[name], State)}
    of_steps = {
        f"{name}/{step}": below
        for name, slot in slots.items()
        for step in slot.names()
        if isinstance(below := peek(slot)[step], State)
    }
    return [path for path, slot in {**slots, **of_steps}.items() if {"params", "buffers"} <= set(slot.names())]


@attrs.frozen(slots=False)
class PredictStep:
    """A prediction step: `output = predict_step(state, batch)`, in evaluation mode, without gradients.

    Of a population the outputs have a dimension more, the first, with an entry for each member; the prediction of
    the ensemble is their mean, `predict_step(state, batch).mean(0)`.

    Attributes:
        model: the module; it is run on the state's tensors and never changed.
        forward: `forward(model, batch)` -> output; by default the model is called on the
            batch's first entry.
        weights: which entry of the state holds the weights: "" for the trained ones
            (`params` and `buffers`), or a slot that holds both, such as "ema"; "ema/critic" is that
            of one of several steps.
        precision: the autocast that the model is run under: the same `pr.Precision` that it is trained with.

    >>> import purerun as pr
    >>> model = nn.Linear(2, 1)
    >>> state = pr.TrainStep(model, lambda m, x: m(x).mean(), pr.optim.SGD()).init(seed=0)
    >>> PredictStep(model)(state, torch.ones(4, 2)).shape
    torch.Size([4, 1])
    """

    model: nn.Module = attrs.field(eq=id, repr=lambda model: type(model).__name__)
    forward: Callable[[nn.Module, Any], Any] = attrs.field(default=first_entry, repr=program.describe)
    weights: str = ""
    precision: Around | None = attrs.field(default=None, kw_only=True, validator=_around)

    @cached_property
    def binding(self) -> Binding:
        """The module's slots."""
        binding = Binding(self.model)
        binding.wide = binding.wide or draws_elsewhere(self.forward)
        return binding

    @cached_property
    def device(self) -> torch.device:
        """Where the model lives, and so where batches go."""
        tensors = [*self.binding.params.values(), *self.binding.buffers.values()]
        return tensors[0].device if tensors else torch.device("cpu")

    def fit(self, state: State) -> None:
        """Check that a state has the weights that are asked for.

        Raises:
            StateError: it has not.
        """
        if self.weights and self.weights not in (known := averages(state)):
            raise StateError(
                f"expected weights={self.weights!r} among the averaged weights of the state, {known}; choose one of "
                "them, wrap the step, e.g. with pr.EMA(0.999), or judge the trained ones with weights=''"
            )

    def __call__(self, state: State, batch: Any) -> Any:
        """Run the model of a state on a batch.

        Raises:
            StateError: it has no such weights.
        """
        if self.device.type != "cpu":
            batch = _batch.move(batch, self.device)
        self.fit(state)
        source = state[tuple(self.weights.split("/"))] if self.weights else state
        buffers = {name: lazy_clone(buffer) for name, buffer in {**state["buffers"], **source["buffers"]}.items()}
        # Cloned, because what a forward returns may be one of them.
        params = {name: lazy_clone(param) for name, param in {**state["params"], **source["params"]}.items()}
        if self.weights:
            # An average of weights of 16 bits is float32.
            for given, like in ((params, self.binding.params), (buffers, self.binding.buffers)):
                given.update({name: leaf.to(like[name].dtype) for name, leaf in given.items()})
        if members(state):
            return self._each(state, params, buffers, batch)
        key = Key.of(int(state["seed"]), "evaluate", int(state["iter"]))
        around = keyed_everywhere if self.binding.wide else keyed
        cast = nullcontext() if self.precision is None else self.precision.around(self.device)
        with torch.no_grad(), around(key), self.binding(params, buffers, training=False) as model, cast:
            return self.forward(model, batch)

    def _each(self, state: State, params: Draft, buffers: Draft, batch: Any) -> Any:
        """Run the models of a population, all at once."""
        if self.binding.wide:
            raise ModelError(
                "expected a model that draws from torch's generators only, but it uses numpy's or Python's, which "
                "would be the same for all members; draw with torch, or judge the members one by one: pr.unstack(state)"
            )

        def one(params: Draft, buffers: Draft) -> Any:
            cast = nullcontext() if self.precision is None else self.precision.around(self.device)
            with self.binding(params, buffers, training=False) as model, cast:
                return self.forward(model, batch)

        keys = [Key.of(seed, "evaluate", int(state["iter"])) for seed in state[SEEDS].tolist()]
        with torch.no_grad(), keyed(keys[0]), Streams(keys):
            return mapped(one, params, buffers)


@attrs.frozen(slots=False)
class ValStep:
    """A validation step: `tallies = val_step(state, tallies, batch)`.

    Attributes:
        model: the module.
        metrics: name -> metric.
        forward: `forward(model, batch)` -> what the metrics are given as output.
        weights: as in `PredictStep`.
        precision: as in `PredictStep`; the metrics are outside of it.

    >>> import purerun as pr
    >>> model = nn.Linear(2, 3)
    >>> state = pr.TrainStep(model, lambda m, b: m(b[0]).mean(), pr.optim.SGD()).init(seed=0)
    >>> val_step = ValStep(model, metrics={"accuracy": pr.metrics.Accuracy()})
    >>> tallies = val_step(state, val_step.init(), (torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)))
    >>> sorted(val_step.compute(tallies))
    ['accuracy']
    """

    model: nn.Module = attrs.field(eq=id, repr=lambda model: type(model).__name__)
    metrics: Mapping[str, Metric] = attrs.field(kw_only=True)
    forward: Callable[[nn.Module, Any], Any] = attrs.field(default=first_entry, kw_only=True, repr=program.describe)
    weights: str = attrs.field(default="", kw_only=True)
    precision: Around | None = attrs.field(default=None, kw_only=True, validator=_around)

    @cached_property
    def predict(self) -> PredictStep:
        """The prediction that the metrics judge."""
        return PredictStep(self.model, self.forward, self.weights, precision=self.precision)

    def init(self) -> Tallies:
        """Make the tallies of no batch."""
        return _metrics.init(self.metrics, self.predict.device)

    def __call__(self, state: State, tallies: Tallies, batch: Any) -> Tallies:
        """Make the tallies after one batch more."""
        if self.predict.device.type != "cpu":
            batch = _batch.move(batch, self.predict.device)
        output = self.predict(state, batch)
        try:
            with torch.no_grad():
                return _metrics.update(self.metrics, tallies, output, batch)
        except Exception as error:
            if count := members(state):
                error.add_note(f"the state is a population of {count}: judge it with pr.metrics.Each({count}, ...)")
            raise

    def compute(self, tallies: Tallies) -> dict[str, Tensor]:
        """Compute the scores: name -> scalar tensor."""
        return _metrics.compute(self.metrics, tallies)

    def blank(self) -> dict[str, Tensor]:
        """Make the scores of a model that was not judged yet: NaN."""
        return _metrics.blank(self.metrics)
