"""The laws as checks that anybody can run on their own recipe, and tables of things to run them on.

Each check raises `LawBroken`, which names the law, the iteration, the leaf and the cause.
"""

# ruff: noqa: F401 - the imports that only type checkers see name what `__getattr__` finds
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from purerun.testing.broken import LawBroken
    from purerun.testing.edges import check_hooks_write_only_declared, check_sinks_change_nothing
    from purerun.testing.everything import check_everything
    from purerun.testing.fresh import check_fresh_tensors
    from purerun.testing.metrics import check_metric
    from purerun.testing.models import MODELS, Case, random_case
    from purerun.testing.modes import check_values_equal_lease, check_workers
    from purerun.testing.purity import check_purity
    from purerun.testing.resume import check_resume, check_shape_constancy
    from purerun.testing.states import counted, rebuilt, saved

_WORDS = {
    "MODELS": "models",
    "Case": "models",
    "LawBroken": "broken",
    "check_everything": "everything",
    "check_fresh_tensors": "fresh",
    "check_hooks_write_only_declared": "edges",
    "check_metric": "metrics",
    "check_purity": "purity",
    "check_resume": "resume",
    "check_shape_constancy": "resume",
    "check_sinks_change_nothing": "edges",
    "check_values_equal_lease": "modes",
    "check_workers": "modes",
    "counted": "states",
    "random_case": "models",
    "rebuilt": "states",
    "saved": "states",
}

__all__ = [*_WORDS]  # noqa: PLE0604  (names, computed)


def __getattr__(name: str) -> Any:
    if name not in _WORDS:
        raise AttributeError(f"module 'purerun.testing' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"purerun.testing.{_WORDS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
