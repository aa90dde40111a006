"""Steps that look and do not learn: validation, test and prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from purerun import batch as _batch
from purerun import metrics as _metrics
from purerun import program
from purerun.bind import Binding
from purerun.metrics import Metric, Tallies
from purerun.random import Key, draws_elsewhere, keyed, keyed_everywhere
from purerun.state import State, StateError, lazy_clone


def first_entry(model: nn.Module, batch: Any) -> Any:
    """Call the model on the first entry of a batch."""
    return model(_batch.entry(batch, 0))


@attrs.frozen(slots=False)
class PredictStep:
    """A prediction step: `output = predict_step(state, batch)`, in evaluation mode, without gradients.

    Attributes:
        model: the module; it is run on the state's tensors and never changed.
        forward: `forward(model, batch)` -> output; by default the model is called on the
            batch's first entry.
        weights: which entry of the state holds the weights: "" for the trained ones
            (`params` and `buffers`), or a slot that holds both, such as "ema".

    >>> import purerun as pr
    >>> model = nn.Linear(2, 1)
    >>> state = pr.TrainStep(model, lambda m, x: m(x).mean(), pr.optim.SGD()).init(seed=0)
    >>> PredictStep(model)(state, torch.ones(4, 2)).shape
    torch.Size([4, 1])
    """

    model: nn.Module = attrs.field(eq=id, repr=lambda model: type(model).__name__)
    forward: Callable[[nn.Module, Any], Any] = attrs.field(default=first_entry, repr=program.describe)
    weights: str = ""

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
        if self.weights and self.weights not in state.names():
            raise StateError(
                f"expected a state with averaged weights in `{self.weights}`, got {list(state.names())}; "
                "wrap the step, e.g. with pr.EMA(0.999), or judge the trained ones with weights=''"
            )

    def __call__(self, state: State, batch: Any) -> Any:
        """Run the model of a state on a batch.

        Raises:
            StateError: it has no such weights.
        """
        if self.device.type != "cpu":
            batch = _batch.move(batch, self.device)
        self.fit(state)
        source = state[self.weights] if self.weights else state
        buffers = {name: lazy_clone(buffer) for name, buffer in {**state["buffers"], **source["buffers"]}.items()}
        key = Key.of(int(state["seed"]), "evaluate", int(state["iter"]))
        # Cloned, because what a forward returns may be one of them.
        params = {name: lazy_clone(param) for name, param in {**state["params"], **source["params"]}.items()}
        around = keyed_everywhere if self.binding.wide else keyed
        with torch.no_grad(), around(key), self.binding(params, buffers, training=False) as model:
            return self.forward(model, batch)


@attrs.frozen(slots=False)
class ValStep:
    """A validation step: `tallies = val_step(state, tallies, batch)`.

    Attributes:
        model: the module.
        metrics: name -> metric.
        forward: `forward(model, batch)` -> what the metrics are given as output.
        weights: as in `PredictStep`.

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

    @cached_property
    def predict(self) -> PredictStep:
        """The prediction that the metrics judge."""
        return PredictStep(self.model, self.forward, self.weights)

    def init(self) -> Tallies:
        """Make the tallies of no batch."""
        return _metrics.init(self.metrics, self.predict.device)

    def __call__(self, state: State, tallies: Tallies, batch: Any) -> Tallies:
        """Make the tallies after one batch more."""
        if self.predict.device.type != "cpu":
            batch = _batch.move(batch, self.predict.device)
        output = self.predict(state, batch)
        with torch.no_grad():
            return _metrics.update(self.metrics, tallies, output, batch)

    def compute(self, tallies: Tallies) -> dict[str, Tensor]:
        """Compute the scores: name -> scalar tensor."""
        return _metrics.compute(self.metrics, tallies)

    def blank(self) -> dict[str, Tensor]:
        """Make the scores of a model that was not judged yet: NaN."""
        return _metrics.blank(self.metrics)
