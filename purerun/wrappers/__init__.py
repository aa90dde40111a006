"""Wrappers: frozen values that stand around a step."""

from purerun.wrappers.accumulate import Accumulate
from purerun.wrappers.averages import EMA, SWA, AnnealedEMA
from purerun.wrappers.clip import Clip
from purerun.wrappers.compile import Compile
from purerun.wrappers.dropout import Dropout
from purerun.wrappers.masters import Masters
from purerun.wrappers.microbatch import Microbatch
from purerun.wrappers.parallel import DataParallel
from purerun.wrappers.precision import Precision
from purerun.wrappers.remat import Remat
from purerun.wrappers.skip import SkipNonFinite
from purerun.wrappers.vmap import Vmap
from purerun.wrappers.wrapper import Wrapped, Wrapper, kinds, wrap

__all__ = [
    "EMA",
    "SWA",
    "Accumulate",
    "AnnealedEMA",
    "Clip",
    "Compile",
    "DataParallel",
    "Dropout",
    "Masters",
    "Microbatch",
    "Precision",
    "Remat",
    "SkipNonFinite",
    "Vmap",
    "Wrapped",
    "Wrapper",
    "kinds",
    "wrap",
]
