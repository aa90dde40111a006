"""Copies of torchmetrics metrics: one for good, and one for each call, which may be written to.

torchmetrics keeps what it counts in attributes of a module.  Here the module is a machine
only: each call makes a shallow copy, fills it, and lets it work.  What a metric remembers
outside its declared states would be forgotten from call to call, so it is refused.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from purerun import program

if TYPE_CHECKING:
    import torchmetrics


def inside(module: nn.Module) -> Iterator[tuple[str, torchmetrics.Metric]]:
    """Walk over a metric and the metrics inside it, as (path, metric), outermost first."""
    import torchmetrics

    return ((path, each) for path, each in module.named_modules() if isinstance(each, torchmetrics.Metric))


def template(metric: torchmetrics.Metric) -> torchmetrics.Metric:
    """Copy a metric for good: reset, and without synchronisation of its own.

    Raises:
        TypeError: it is no torchmetrics metric.
    """
    import torchmetrics

    if not isinstance(metric, torchmetrics.Metric):
        many = isinstance(metric, torchmetrics.MetricCollection)
        remedy = "name its metrics one by one in the dict of metrics" if many else "make one, e.g. BinaryAUROC()"
        raise TypeError(f"expected an instance of torchmetrics.Metric, got {metric!r:.80}; {remedy}")
    made = copy.deepcopy(metric)
    made.reset()
    for _, each in inside(made):
        each.sync_on_compute = each.dist_sync_on_step = each._to_sync = False
    return made


def scratch(metric: torchmetrics.Metric) -> torchmetrics.Metric:
    """Copy a metric, and the metrics inside it, so that attributes can be written; tensors are shared."""
    return _copied(metric, {})


def _copied(module: Any, made: dict[int, Any]) -> Any:
    if id(module) not in made:
        twin = made[id(module)] = copy.copy(module)
        own = vars(twin)
        own.update({name: _fresh(value) for name, value in own.items() if name not in _of_modules()})
        own["_buffers"] = dict(own["_buffers"])
        own["_modules"] = {
            name: _copied(child, made) if _holds(child) else child for name, child in own["_modules"].items()
        }
    return made[id(module)]


def _holds(child: nn.Module | None) -> bool:
    return child is not None and any(inside(child))


def _fresh(value: Any) -> Any:
    if type(value) is dict:
        return {key: _fresh(inner) for key, inner in value.items()}
    if type(value) is list:
        return [_fresh(inner) for inner in value]
    return set(value) if type(value) is set else value


def marks(metric: torchmetrics.Metric) -> dict[str, Any]:
    """Note what a metric holds besides its states, to be compared later.

    >>> from torchmetrics import SumMetric
    >>> marks(SumMetric())
    {'nan_strategy': 'warn', 'state_name': 'sum_value'}
    """
    return {
        f"{path}.{name}" if path else name: _mark(value)
        for path, each in inside(metric)
        for name, value in _settings(each).items()
    }


def _settings(metric: torchmetrics.Metric) -> dict[str, Any]:
    held = {**vars(metric), **metric._buffers}
    return {name: value for name, value in held.items() if name not in _of_metrics() and name not in metric._defaults}


def _mark(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, Mapping):
        return [(key, _mark(inner)) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_mark(inner) for inner in value]
    if isinstance(value, set):
        return set(value)
    return value if isinstance(value, bool | int | float | str) else id(value)


def refuse_memory(metric: torchmetrics.Metric, before: Mapping[str, Any]) -> None:
    """Compare a metric with its marks from before a call.

    Raises:
        TypeError: it has changed something besides its states.
    """
    after = marks(metric)
    changed = [name for name in {**before, **after} if before.get(name, before) != after.get(name, after)]
    if changed:
        raise TypeError(
            f"expected {type(metric).__name__} to remember in its states only (add_state), but it changed "
            f"{', '.join(map(repr, sorted(changed)))}, which no tally carries; give it that setting when it is made, "
            "or make it a state"
        )


def described(metric: torchmetrics.Metric) -> str:
    """Say what a metric is: its class and its settings; equal for equal metrics.

    >>> from torchmetrics import SumMetric
    >>> described(SumMetric())
    "SumMetric(nan_strategy='warn', state_name='sum_value')"
    """
    settings = {**_settings(metric), **dict(metric.named_children())}
    return f"{type(metric).__qualname__}({', '.join(f'{name}={_told(value)}' for name, value in settings.items())})"


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, nn.ModuleList):
        return f"[{', '.join(map(_told, value))}]"
    return described(value) if _is_metric(value) else program.describe(value)


def _is_metric(value: Any) -> bool:
    import torchmetrics

    return isinstance(value, torchmetrics.Metric)


@functools.cache
def _of_modules() -> frozenset[str]:
    return frozenset(vars(nn.Module()))


@functools.cache
def _of_metrics() -> frozenset[str]:
    """List what every metric holds: the bookkeeping of torch and torchmetrics."""
    import torchmetrics

    class Bare(torchmetrics.Metric):
        def update(self) -> None: ...
        def compute(self) -> None: ...

    return frozenset(vars(Bare()))
