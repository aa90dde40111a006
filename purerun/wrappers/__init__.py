"""Wrappers: frozen values that stand around a step."""

from purerun.wrappers.accumulate import Accumulate
from purerun.wrappers.ema import EMA
from purerun.wrappers.wrapper import Wrapped, Wrapper, wrap

__all__ = ["EMA", "Accumulate", "Wrapped", "Wrapper", "wrap"]
