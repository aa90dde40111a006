"""Any optimizer of torch made pure: its memory in the state, and nothing in the optimizer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun.optim import trial
from purerun.optim.fixed import Fixed
from purerun.optim.groups import Group
from purerun.optim.optimizer import Bucket, Closure, Optimizer, Params, Report, Slots
from purerun.optim.proxy import Layout, Maker, Proxy, started
