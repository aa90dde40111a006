"""Metrics of the torchmetrics library, as pure values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs
import torch
from torch import Tensor

from purerun import batch as _batch
from purerun import program
from purerun.metrics import slot
from purerun.metrics.metric import Metric, Tally
from purerun.metrics.scratch import described, inside, marks, refuse_memory, scratch, template

if TYPE_CHECKING:
    import torchmetrics


class Home(NamedTuple):
    """A metric where its tensors are, with its states."""

    metric: torchmetrics.Metric
    states: tuple[slot.Slot, ...]


@attrs.frozen
class Torchmetrics(Metric):
    """Any torchmetrics metric as a pure one.

    The instance that is given is copied and never changed.  Its states become the tally:
    a tensor state is an entry of its name; a list state ("cat") is the entries `name.0`,
    `name.1`, ..., so the tally of such a metric grows with the data and its shapes are not
    constant (the binned forms, `thresholds=100`, are); a state that torchmetrics only stacks
    (`dist_reduce_fx=None`) is held with one row for each stretch that was merged.

    Stretches of time and processes join alike, by the `dist_reduce_fx` of each state, also
    for metrics whose own `merge_state` refuses.  Means are weighted by the number of updates.

    A metric that remembers something outside its states (`Running`, `MinMaxMetric`) is
    refused at the first call that would lose it; one that draws random numbers
    (`BootStrapper`) is not repeatable.

    Attributes:
        metric: an instance of `torchmetrics.Metric`; one with networks inside is copied with them.
        preds: a function of the output that makes the predictions; the output itself by default.
        target: which entry of the batch is the target; None if the metric takes none.
        arguments: in place of both: a function of output and batch that makes all arguments
            of the metric's `update`, by name.

    >>> from torchmetrics.classification import BinaryAUROC
    >>> metric = Torchmetrics(BinaryAUROC(), preds=torch.sigmoid)
    >>> logits, targets = torch.tensor([-1.0, 2.0, 0.5, -2.0]), torch.tensor([0, 1, 0, 1])
    >>> tally = metric.update(metric.init(), logits, (None, targets))
    >>> sorted(tally)
    ['preds.0', 'target.0', 'update_count']
    >>> metric.compute(tally)
    tensor(0.5000)
    """

    metric: torchmetrics.Metric = attrs.field(converter=template, eq=described, repr=described)
    preds: Callable[[Any], Any] | None = attrs.field(default=None, repr=program.describe)
    target: str | int | None = 1
    arguments: Callable[[Any, Any], Mapping[str, Any]] | None = attrs.field(
        default=None, kw_only=True, repr=program.describe
    )
    # A memo: what the metric and a device alone decide.
    _at_home: dict[torch.device, Home] = attrs.field(init=False, factory=dict, eq=False, repr=False)

    def init(self, device: torch.device | str = "cpu") -> Tally:
        """Make the tally of no batch."""
        return slot.empty(self._home(torch.device(device)).states, torch.device(device))

    def update(self, tally: Tally, output: Any, batch: Any) -> Tally:
        """Let the metric count a batch.

        Raises:
            TypeError: the metric remembers something outside its states, or not as tensors.
        """
        machine, states = self._filled(tally, whole=False)
        before = marks(machine)
        if self.arguments is not None:
            machine.update(**self.arguments(output, batch))
        else:
            machine.update(*self._inputs(output, batch))
        refuse_memory(machine, before)
        return slot.drain(machine, states, tally)

    def merge(self, a: Tally, b: Tally) -> Tally:
        """Join two stretches, each state by its `dist_reduce_fx`."""
        return self.reduce([a, b])

    def reduce(self, tallies: Sequence[Tally]) -> Tally:
        """Join processes, each state by its `dist_reduce_fx`."""
        if not tallies:
            raise ValueError(
                "expected the tally of at least one process, got none; a process without batches has init()"
            )
        return slot.join(self._home(tallies[0][slot.COUNT].device).states, tallies)

    def compute(self, tally: Tally) -> Tensor | dict[str, Tensor]:
        """Let the metric compute; a result of several parts is a dict by their names or places.

        Raises:
            TypeError: the metric remembers what it computed.
        """
        machine, _ = self._filled(tally, whole=True)
        for _, each in inside(machine):
            # Only asked whether it is 0, to warn.
            each._update_count = 1
        before = marks(machine)
        result = machine.compute()
        refuse_memory(machine, before)
        return result if isinstance(result, Tensor) else dict(_named(result))

    def blank(self) -> Tensor | dict[str, Tensor]:
        """Make the score before it is asked: NaN; a single one where the metric cannot compute from nothing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return super().blank()
            except (ValueError, RuntimeError, IndexError, TypeError):
                return torch.tensor(float("nan"), dtype=torch.float64)

    def _inputs(self, output: Any, batch: Any) -> tuple[Any, ...]:
        preds = output if self.preds is None else self.preds(output)
        return (preds,) if self.target is None else (preds, _batch.entry(batch, self.target))

    def _filled(self, tally: Tally, *, whole: bool) -> tuple[torchmetrics.Metric, tuple[slot.Slot, ...]]:
        home = self._home(tally[slot.COUNT].device)
        machine = scratch(home.metric)
        slot.fill(machine, home.states, tally, whole=whole)
        return machine, home.states

    def _home(self, device: torch.device) -> Home:
        if device not in self._at_home:
            there = self.metric if self.metric.device == device else template(self.metric).to(device)
            self._at_home[device] = Home(there, slot.slots(there))
        return self._at_home[device]


def _named(result: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(result, Mapping | list | tuple):
        for key, value in result.items() if isinstance(result, Mapping) else enumerate(result):
            yield from _named(value, f"{name}/{key}" if name else str(key))
    else:
        yield name, torch.as_tensor(result)
