"""Optimizers as values: pure `init` and `update` over torch's own kernels."""

from purerun.optim.groups import Group, partition
from purerun.optim.optimizer import Bucket, Optimizer
from purerun.optim.sgd import SGD

__all__ = ["SGD", "Bucket", "Group", "Optimizer", "partition"]
