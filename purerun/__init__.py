"""purerun: a training run is a value.

The public words, and nothing else.  Each is imported when it is first used, so that
`import purerun` costs next to nothing.

>>> import purerun as pr
>>> pr.SGD
Traceback (most recent call last):
...
AttributeError: module 'purerun' has no attribute 'SGD'; did you mean one of its words or rooms: ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purerun import checkpoint, data, hooks, metrics, optim, random, schedule, sinks, testing
    from purerun.checkpoint import load, save
    from purerun.data import Loader
    from purerun.identity import diff, digest
    from purerun.evaluate import PredictStep, ValStep
    from purerun.grad import Grads, Loss
    from purerun.loop import PredictLoop, TestLoop, TrainLoop, ValLoop
    from purerun.random import Key
    from purerun.recipe import Module, Recipe
    from purerun.sinks import watch
    from purerun.state import StaleState, State, StateError
    from purerun.step import Step, init
    from purerun.train import TrainStep
    from purerun.wrappers import EMA, Accumulate, Wrapper, wrap

__version__ = "0.1.0"

_WORDS = {
    "Accumulate": "wrappers",
    "EMA": "wrappers",
    "Grads": "grad",
    "Key": "random",
    "Loader": "data",
    "Loss": "grad",
    "Module": "recipe",
    "PredictLoop": "loop",
    "PredictStep": "evaluate",
    "Recipe": "recipe",
    "StaleState": "state",
    "State": "state",
    "StateError": "state",
    "Step": "step",
    "TestLoop": "loop",
    "TrainLoop": "loop",
    "TrainStep": "train",
    "ValLoop": "loop",
    "ValStep": "evaluate",
    "Wrapper": "wrappers",
    "diff": "identity",
    "digest": "identity",
    "init": "step",
    "load": "checkpoint",
    "save": "checkpoint",
    "watch": "sinks",
    "wrap": "wrappers",
}
_ROOMS = ("checkpoint", "data", "hooks", "metrics", "optim", "random", "schedule", "sinks", "testing")

__all__ = [*_WORDS, *_ROOMS]  # noqa: PLE0604  (names, computed)


def __getattr__(name: str) -> Any:
    if name in _WORDS:
        value = getattr(importlib.import_module(f"purerun.{_WORDS[name]}"), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"purerun.{name}")
    else:
        raise AttributeError(
            f"module 'purerun' has no attribute {name!r}; did you mean one of its words or rooms: {', '.join(__all__)}?"
        )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
