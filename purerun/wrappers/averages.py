"""Averages of the weights over time, beside the weights: exponential, annealed and stochastic."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import attrs
import torch
from torch import Tensor

from purerun.grad import Grads
from purerun.merge import summed
from purerun.state import Draft, lazy_clone
from purerun.step import Step
from purerun.valid import above, floating, number, one_of, whole
from purerun.wrappers.wrapper import Wrapper


@attrs.frozen
class Average(Wrapper):
    """What the averages share: the first update copies the weights, each later one moves towards them.

    Until `begin` the average is a copy of the weights, in float32 where they have 16 bits.  Evaluate it with
    `ValStep(..., weights="ema")`: nothing is swapped in or out; the state holds both sets.  Counting is MMEngine's
    (`BaseAveragedModel`, `EMAHook`).

    Attributes:
        begin: the first finished iteration or epoch (counted from 1) with which averaging begins; inside of
            `Accumulate(schedule="update")` its iterations are the updates.
        by: what `begin` counts, "iter" or "epoch".
        interval: updates of this wrapper from one move of the average to the next.
        buffers: "copy" to have the newest ones, or "average" to average those of floating point too.
    """

    begin: int = attrs.field(default=0, kw_only=True, validator=whole(0))
    by: Literal["iter", "epoch"] = attrs.field(default="iter", kw_only=True, validator=one_of("iter", "epoch"))
    interval: int = attrs.field(default=1, kw_only=True, validator=whole(1))
    buffers: Literal["copy", "average"] = attrs.field(default="copy", kw_only=True, validator=one_of("copy", "average"))

    @abstractmethod
    def weight(self, count: int) -> float:
        """Say how far the average moves towards the weights, in [0, 1], after `count` updates."""

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Start the average at the weights themselves."""
        return {
            "params": {name: _wide(draft["params"][name]) for name in step.trained},
            "buffers": {name: _wide(buffer) for name, buffer in draft["buffers"].items()},
            "count": torch.zeros((), dtype=torch.int64, device="cpu"),
        }

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Move the average towards the parameters that the inner update wrote."""
        step.write(draft, grads)
        self._move(draft)

    def close(self, step: Step, draft: Draft) -> bool:
        """Take the update into the average that a loop ends with."""
        closed = step.close(draft)
        if closed:
            self._move(draft)
        return closed

    def _move(self, draft: Draft) -> None:
        slot = draft[self.slot]
        # The counters are those before this iteration, which is finished now.
        begun = int(draft[self.by]) + 1 >= self.begin
        count = int(slot["count"])
        if not begun or count == 0:
            self._towards(draft, 1.0)
        elif count % self.interval == 0:
            self._towards(draft, self.weight(count))
        elif self.buffers == "copy":
            self._copy_buffers(draft)
        if begun:
            slot["count"] = torch.tensor(count + 1, device="cpu")

    def _towards(self, draft: Draft, weight: float) -> None:
        _lerp(draft[self.slot]["params"], draft["params"], weight)
        if self.buffers == "average" and weight < 1:
            _lerp(draft[self.slot]["buffers"], draft["buffers"], weight)
        else:
            self._copy_buffers(draft)

    def _copy_buffers(self, draft: Draft) -> None:
        buffers = draft[self.slot]["buffers"]
        draft[self.slot]["buffers"] = _copies(buffers, draft["buffers"])


def _lerp(average: Draft, now: Draft, weight: float) -> None:
    """Move tensors of floating point; others, such as counts, are copied."""
    if weight == 1:
        # Not a step of the whole way, which would make NaN of an infinity.
        average.update(_copies(average, now))
        return
    smooth = [name for name, leaf in average.items() if leaf.is_floating_point() or leaf.is_complex()]
    if smooth:
        own = [average[name] for name in smooth]
        torch._foreach_lerp_(own, [now[name].to(leaf.dtype) for name, leaf in zip(smooth, own, strict=True)], weight)
    if len(smooth) < len(average):
        average.update(_copies({name: average[name] for name in average if name not in smooth}, now))


def _copies(like: Draft, now: Draft) -> Draft:
    return {name: lazy_clone(now[name]).to(leaf.dtype) for name, leaf in like.items()}


def _wide(tensor: Tensor) -> Tensor:
    """Copy a tensor, with room for small moves: 16 bits would round them away."""
    return tensor.to(summed(tensor.dtype), copy=True)


@attrs.frozen
class EMA(Average):
    """Keep an exponential moving average in the slot `ema`: `average += (1 - decay) * (weights - average)`.

    MMEngine's `ExponentialMovingAverage(momentum)` is `EMA(1 - momentum)`.

    Attributes:
        decay: how much of the average stays, in [0, 1].
        begin, by, interval, buffers: as in `purerun.wrappers.averages.Average`: from which iteration (`by="epoch"`:
            epoch) on, once in how many updates, and whether buffers are copied or averaged.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(1, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=1.0))
    >>> states = [pr.wrap(step, EMA(0.5)).init()]
    >>> for _ in range(2):
    ...     states.append(pr.wrap(step, EMA(0.5))(states[-1], torch.ones(1, 1)))
    >>> [round(float(s["ema", "params", "bias"] - states[0]["params", "bias"]), 3) for s in states]
    [0.0, -1.0, -1.5]
    """

    decay: float = attrs.field(default=0.999, converter=floating, validator=number(0, 1))

    @property
    def slot(self) -> str:
        """Where the average lives."""
        return "ema"

    def weight(self, count: int) -> float:
        """Say how far the average moves."""
        return 1.0 - self.decay


@attrs.frozen
class AnnealedEMA(EMA):
    """Keep an exponential moving average that moves faster at first, in the slot `ema`.

    After n updates it moves by `max(1 - decay, gamma / (gamma + n))`: MMEngine's `MomentumAnnealingEMA`.

    Attributes:
        gamma: for about how many updates it is as good as the mean of all.

    >>> [round(AnnealedEMA(0.9, gamma=2).weight(count), 3) for count in (1, 2, 100)]
    [0.667, 0.5, 0.1]
    """

    gamma: float = attrs.field(default=100.0, kw_only=True, converter=floating, validator=above(0))

    def weight(self, count: int) -> float:
        """Say how far the average moves."""
        return max(1.0 - self.decay, self.gamma / (self.gamma + count))


@attrs.frozen
class SWA(Average):
    """Keep the mean of the weights at every `interval`-th update, in the slot `swa`.

    Stochastic weight averaging (Izmailov et al., arXiv:1803.05407); MMEngine's `StochasticWeightAverage`.  Judge it
    with `weights="swa"`.

    >>> [SWA(interval=2).weight(count) for count in (2, 4)]
    [0.5, 0.3333333333333333]
    """

    @property
    def slot(self) -> str:
        """Where the mean lives."""
        return "swa"

    def weight(self, count: int) -> float:
        """Say how far the mean moves: it is one of one more."""
        return 1.0 / (count // self.interval + 1)
