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
    from purerun import checkpoint as checkpoint
    from purerun import data as data
    from purerun import hooks as hooks
    from purerun import metrics as metrics
    from purerun import optim as optim
    from purerun import random as random
    from purerun import schedule as schedule
    from purerun import sinks as sinks
    from purerun import testing as testing
    from purerun.checkpoint import load as load
    from purerun.checkpoint import load_weights as load_weights
    from purerun.checkpoint import save as save
    from purerun.data import Loader as Loader
    from purerun.evaluate import PredictStep as PredictStep
    from purerun.evaluate import ValStep as ValStep
    from purerun.grad import Grads as Grads
    from purerun.grad import Loss as Loss
    from purerun.grad import Pass as Pass
    from purerun.grad import Term as Term
    from purerun.identity import diff as diff
    from purerun.identity import digest as digest
    from purerun.loop import PredictLoop as PredictLoop
    from purerun.loop import TestLoop as TestLoop
    from purerun.loop import TrainLoop as TrainLoop
    from purerun.loop import ValLoop as ValLoop
    from purerun.random import Key as Key
    from purerun.recipe import Module as Module
    from purerun.recipe import Recipe as Recipe
    from purerun.sinks import watch as watch
    from purerun.state import StaleState as StaleState
    from purerun.state import State as State
    from purerun.state import StateError as StateError
    from purerun.step import Step as Step
    from purerun.step import init as init
    from purerun.train import TrainStep as TrainStep
    from purerun.wrappers import EMA as EMA
    from purerun.wrappers import Accumulate as Accumulate
    from purerun.wrappers import Wrapper as Wrapper
    from purerun.wrappers import wrap as wrap

__version__ = "0.1.0"

_WORDS = {
    "Accumulate": "wrappers",
    "EMA": "wrappers",
    "Grads": "grad",
    "Key": "random",
    "Loader": "data",
    "Loss": "grad",
    "Module": "recipe",
    "Pass": "grad",
    "PredictLoop": "loop",
    "PredictStep": "evaluate",
    "Recipe": "recipe",
    "StaleState": "state",
    "State": "state",
    "StateError": "state",
    "Step": "step",
    "Term": "grad",
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
    "load_weights": "checkpoint",
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
