"""Hooks: frozen functions from state to state, and the conditions of when they act."""

from purerun.hooks.hook import Hook
from purerun.hooks.plateau import ReduceOnPlateau
from purerun.hooks.validate import Validate
from purerun.hooks.when import All, Any, At, Every, Last, Not, When, every

__all__ = ["All", "Any", "At", "Every", "Hook", "Last", "Not", "ReduceOnPlateau", "Validate", "When", "every"]
