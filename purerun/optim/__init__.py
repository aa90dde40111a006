"""Optimizers as values: pure `init` and `update` over torch's own kernels."""

from purerun.optim.adagrad import Adagrad
from purerun.optim.adam import Adam, AdamW
from purerun.optim.groups import Group, partition
from purerun.optim.optimizer import Bucket, Optimizer
from purerun.optim.rmsprop import RMSprop
from purerun.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Bucket", "Group", "Optimizer", "RMSprop", "partition"]
