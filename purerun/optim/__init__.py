"""Optimizers as values: pure `init` and `update` over torch's own kernels.

Each word is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purerun.optim.adagrad import Adagrad as Adagrad
    from purerun.optim.adam import Adam as Adam
    from purerun.optim.adam import AdamW as AdamW
    from purerun.optim.chaining import Chain as Chain
    from purerun.optim.chaining import chain as chain
    from purerun.optim.clip import ClipAdaptive as ClipAdaptive
    from purerun.optim.clip import ClipNorm as ClipNorm
    from purerun.optim.clip import ClipValue as ClipValue
    from purerun.optim.groups import Group as Group
    from purerun.optim.groups import GroupError as GroupError
    from purerun.optim.groups import partition as partition
    from purerun.optim.groups import strict as strict
    from purerun.optim.layers import layer_decay as layer_decay
    from purerun.optim.match import Kind as Kind
    from purerun.optim.match import Match as Match
    from purerun.optim.match import Name as Name
    from purerun.optim.match import Ndim as Ndim
    from purerun.optim.match import ParamInfo as ParamInfo
    from purerun.optim.match import Type as Type
    from purerun.optim.match import Where as Where
    from purerun.optim.match import inspect as inspect
    from purerun.optim.openmmlab import paramwise as paramwise
    from purerun.optim.optimizer import Bucket as Bucket
    from purerun.optim.optimizer import Closure as Closure
    from purerun.optim.optimizer import Optimizer as Optimizer
    from purerun.optim.optimizer import Report as Report
    from purerun.optim.rmsprop import RMSprop as RMSprop
    from purerun.optim.sgd import SGD as SGD
    from purerun.optim.sharing import Share as Share
    from purerun.optim.sharing import Split as Split
    from purerun.optim.sharing import split as split
    from purerun.optim.stateful import Torch as Torch
    from purerun.optim.transform import Applied as Applied
    from purerun.optim.transform import Transform as Transform

_WORDS = {
    "Adagrad": "adagrad",
    "Adam": "adam",
    "AdamW": "adam",
    "Applied": "transform",
    "Bucket": "optimizer",
    "Chain": "chaining",
    "ClipAdaptive": "clip",
    "ClipNorm": "clip",
    "ClipValue": "clip",
    "Closure": "optimizer",
    "Group": "groups",
    "GroupError": "groups",
    "Kind": "match",
    "Match": "match",
    "Name": "match",
    "Ndim": "match",
    "Optimizer": "optimizer",
    "ParamInfo": "match",
    "RMSprop": "rmsprop",
    "Report": "optimizer",
    "SGD": "sgd",
    "Share": "sharing",
    "Split": "sharing",
    "Torch": "stateful",
    "Transform": "transform",
    "Type": "match",
    "Where": "match",
    "chain": "chaining",
    "inspect": "match",
    "layer_decay": "layers",
    "paramwise": "openmmlab",
    "partition": "groups",
    "split": "sharing",
    "strict": "groups",
}

__all__ = [*_WORDS]  # noqa: PLE0604  (names, computed)


def __getattr__(name: str) -> Any:
    if name not in _WORDS:
        raise AttributeError(f"module 'purerun.optim' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"purerun.optim.{_WORDS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
