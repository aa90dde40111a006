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

from purerun.version import __version__ as __version__

if TYPE_CHECKING:
    from purerun import algebra as algebra
    from purerun import checkpoint as checkpoint
    from purerun import data as data
    from purerun import hooks as hooks
    from purerun import initial as initial
    from purerun import metrics as metrics
    from purerun import optim as optim
    from purerun import processes as processes
    from purerun import random as random
    from purerun import schedule as schedule
    from purerun import sinks as sinks
    from purerun import testing as testing
    from purerun.checkpoint import load as load
    from purerun.checkpoint import load_weights as load_weights
    from purerun.checkpoint import save as save
    from purerun.data import Loader as Loader
    from purerun.derivatives import Noise as Noise
    from purerun.derivatives import loss_at as loss_at
    from purerun.derivatives import noise_scale as noise_scale
    from purerun.derivatives import per_sample as per_sample
    from purerun.derivatives import unroll as unroll
    from purerun.evaluate import PredictStep as PredictStep
    from purerun.evaluate import ValStep as ValStep
    from purerun.evolution import evolve as evolve
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
    from purerun.population import choose as choose
    from purerun.population import stack as stack
    from purerun.population import unstack as unstack
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
    from purerun.wrappers import SWA as SWA
    from purerun.wrappers import Accumulate as Accumulate
    from purerun.wrappers import AnnealedEMA as AnnealedEMA
    from purerun.wrappers import Clip as Clip
    from purerun.wrappers import Compile as Compile
    from purerun.wrappers import DataParallel as DataParallel
    from purerun.wrappers import Dropout as Dropout
    from purerun.wrappers import Masters as Masters
    from purerun.wrappers import Microbatch as Microbatch
    from purerun.wrappers import Precision as Precision
    from purerun.wrappers import Remat as Remat
    from purerun.wrappers import SkipNonFinite as SkipNonFinite
    from purerun.wrappers import Vmap as Vmap
    from purerun.wrappers import Wrapper as Wrapper
    from purerun.wrappers import wrap as wrap

_WORDS = {
    "Accumulate": "wrappers",
    "AnnealedEMA": "wrappers",
    "Clip": "wrappers",
    "Compile": "wrappers",
    "DataParallel": "wrappers",
    "Dropout": "wrappers",
    "EMA": "wrappers",
    "Grads": "grad",
    "Key": "random",
    "Loader": "data",
    "Loss": "grad",
    "Masters": "wrappers",
    "Microbatch": "wrappers",
    "Module": "recipe",
    "Noise": "derivatives",
    "Part": "recipe",
    "Pass": "grad",
    "Precision": "wrappers",
    "PredictLoop": "loop",
    "PredictStep": "evaluate",
    "Recipe": "recipe",
    "SWA": "wrappers",
    "Remat": "wrappers",
    "SkipNonFinite": "wrappers",
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
    "Vmap": "wrappers",
    "Wrapper": "wrappers",
    "choose": "population",
    "diff": "identity",
    "digest": "identity",
    "evolve": "evolution",
    "init": "step",
    "load": "checkpoint",
    "load_weights": "checkpoint",
    "loss_at": "derivatives",
    "noise_scale": "derivatives",
    "per_sample": "derivatives",
    "save": "checkpoint",
    "stack": "population",
    "unroll": "derivatives",
    "unstack": "population",
    "watch": "sinks",
    "wrap": "wrappers",
}
_ROOMS = (
    "algebra",
    "checkpoint",
    "data",
    "hooks",
    "initial",
    "metrics",
    "optim",
    "processes",
    "random",
    "schedule",
    "sinks",
    "testing",
)

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
