"""Optimizers as values: pure `init` and `update` over torch's own kernels."""

from purerun.optim.adagrad import Adagrad
from purerun.optim.adam import Adam, AdamW
from purerun.optim.chain import Chain, chain
from purerun.optim.clip import ClipNorm, ClipValue
from purerun.optim.groups import Group, GroupError, partition, strict
from purerun.optim.match import Kind, Match, Name, Ndim, ParamInfo, Type, Where, inspect
from purerun.optim.optimizer import Bucket, Closure, Optimizer, Report
from purerun.optim.paramwise import paramwise
from purerun.optim.rmsprop import RMSprop
from purerun.optim.sgd import SGD
from purerun.optim.split import Share, Split, split
from purerun.optim.stateful import Torch
from purerun.optim.transform import Applied, Transform

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Applied",
    "Bucket",
    "Chain",
    "ClipNorm",
    "ClipValue",
    "Closure",
    "Group",
    "GroupError",
    "Kind",
    "Match",
    "Name",
    "Ndim",
    "Optimizer",
    "ParamInfo",
    "RMSprop",
    "Report",
    "Share",
    "Split",
    "Torch",
    "Transform",
    "Type",
    "Where",
    "chain",
    "inspect",
    "paramwise",
    "partition",
    "split",
    "strict",
]
