"""Validation during training: a hook that writes the scores of the state it sees."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from purerun.hooks.hook import Hook
from purerun.loop import ValLoop
from purerun.state import Draft, State


@attrs.frozen
class Validate(Hook):
    """Judge the state and write the result into `scores`, beside `iter`, the iteration judged.

    Attributes:
        loop: the validation loop.
        loader: what it reads.
        every: when to validate.
        before: validate before the first iteration too.
        prefix: stands before each score's name, to tell several validations apart.

    >>> import purerun as pr
    >>> model = torch.nn.Linear(2, 3)
    >>> step = pr.TrainStep(model, lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1]), pr.optim.SGD(lr=0.1))
    >>> loader = pr.Loader(pr.data.Tensors(torch.ones(8, 2), torch.zeros(8, dtype=torch.int64)), batch_size=4)
    >>> judge = pr.ValLoop(pr.ValStep(model, metrics={"accuracy": pr.metrics.Accuracy()}))
    >>> loop = pr.TrainLoop(step, epochs=5, hooks=[Validate(judge, loader, every="5 epochs")])
    >>> [float(s["scores", "accuracy"]) for s in loop(step.init(seed=0), loader)][-1]
    1.0
    """

    loop: ValLoop
    loader: Any = attrs.field(repr=lambda loader: type(loader).__name__)
    before: bool = attrs.field(default=False, kw_only=True)
    prefix: str = attrs.field(default="", kw_only=True)

    @property
    def writes(self) -> tuple[str, ...]:
        """Only the scores."""
        return ("scores",)

    def slots(self, state: State) -> Draft:
        """Make the scores, as NaN until the first validation, and the iteration that they are of.

        Raises:
            StateError: the weights to judge are not in the state.
        """
        self.loop.step.predict.fit(state)
        blank = {self.prefix + name: score for name, score in self.loop.step.blank().items()}
        return {"scores": {**blank, self.prefix + "iter": torch.tensor(-1, device="cpu")}}

    def start(self, state: State) -> State:
        """Validate before training, if asked for."""
        return self(state) if self.before else state

    def __call__(self, state: State) -> State:
        """Make the state with new scores, and with the iteration that they are of."""
        scores = self.loop(state, self.loader)
        found = {self.prefix + name: score.to("cpu", torch.float64) for name, score in scores.items()}
        return state.replace(scores={**found, self.prefix + "iter": int(state["iter"])})
