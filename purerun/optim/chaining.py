"""Transforms of gradients and an optimizer as one optimizer, each under its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from purerun.optim.fixed import Ordered
from purerun.optim.groups import Group
from purerun.optim.optimizer import Buckets, Closure, Optimizer, Params, Report, Slots, TracedBuckets
from purerun.optim.transform import Transform


def _well_formed(_instance: Any, _attribute: Any, parts: Ordered[Any]) -> None:
    *before, last = list(parts.values()) or [None]
    if not isinstance(last, Optimizer) or isinstance(last, Chain):
        raise TypeError(f"expected a chain to end with one optimizer, such as adam=Adam(), got {last!r}")
    wrong = [part for part in before if not isinstance(part, Transform)]
    if wrong:
        raise TypeError(f"expected transforms such as ClipNorm(1.0) before the optimizer of a chain, got {wrong[0]!r}")
    dotted = [name for name in parts if not name.isidentifier()]
    if dotted:
        raise ValueError(f"expected names of parts that are identifiers, got {dotted}")


@attrs.frozen
class Chain(Optimizer):
    """Transforms, one after the other, and then an optimizer.

    The slots of a part lie under its name.  The optimizer's hyper-parameters keep their
    names (`lr`), those of a transform stand behind its own (`clip.max_norm`).  The groups
    are the optimizer's.

    Attributes:
        parts: name -> transform, and last an optimizer.
    """

    parts: Ordered[Transform | Optimizer] = attrs.field(converter=Ordered, validator=_well_formed)
    groups: tuple[Group, ...] = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: _groups(self.parts), takes_self=True)
    )

    @property
    def closes(self) -> bool:
        """Whether the optimizer needs the closure; it is given transformed gradients too."""
        return self._last[1].closes

    def hyper(self) -> dict[str, float]:
        """List the optimizer's hyper-parameters, and those of the transforms behind their names."""
        own = {f"{name}.{key}": value for name, part in self._before for key, value in part.hyper().items()}
        return {**self._last[1].hyper(), **own}

    def init(self, params: Params) -> Slots:
        """Make the slots of each part that has some, under its name."""
        slots = {name: part.init(params) for name, part in self.parts.items()}
        return {name: inner for name, inner in slots.items() if inner}

    def write(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        buckets: Buckets,
        *,
        report: Report | None = None,
        closure: Closure | None = None,
    ) -> None:
        """Transform the gradients, and write the optimizer's update in place."""
        name, optimizer = self._last
        grads, after, measured = self._applied(params, grads, slots, buckets, traced=False)
        if closure is not None:
            closure = self._closed(closure, slots, buckets)
        optimizer.write(params, grads, slots.get(name, {}), buckets, report=report, closure=closure)
        slots.update(after)
        if report is not None:
            report.update(measured)

    def trace(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        buckets: TracedBuckets,
        *,
        report: Report | None = None,
    ) -> tuple[dict[str, Tensor], Slots]:
        """Transform the gradients, and make what the optimizer makes of them."""
        name, optimizer = self._last
        grads, after, measured = self._applied(params, grads, slots, buckets, traced=True)
        moved, inner = optimizer.trace(params, grads, slots.get(name, {}), buckets, report=report)
        if report is not None:
            report.update(measured)
        return moved, {**after, **({name: inner} if inner else {})}

    @property
    def _before(self) -> list[tuple[str, Transform]]:
        return list(self.parts.items())[:-1]  # type: ignore[return-value]

    @property
    def _last(self) -> tuple[str, Optimizer]:
        return list(self.parts.items())[-1]  # type: ignore[return-value]

    def _applied(
        self, params: Params, grads: Params, slots: Slots, buckets: TracedBuckets, *, traced: bool
    ) -> tuple[dict[str, Tensor], Slots, Report]:
        grads = {name: grads[name] for bucket in buckets for name in bucket.names}
        after: Slots = {}
        measured: Report = {}
        for name, part in self._before:
            # A transform is of all gradients together, so it reads what no group changes.
            hyper = {key: buckets[0].hyper[f"{name}.{key}"] for key in part.hyper()}
            grads, new, report = part.apply(params, grads, slots.get(name, {}), hyper, traced=traced)
            after |= {name: new} if new else {}
            measured |= {key if key not in measured else f"{name}.{key}": value for key, value in report.items()}
        return grads, after, measured

    def _closed(self, closure: Closure, slots: Slots, buckets: Buckets) -> Closure:
        def transformed(params: Params) -> tuple[Tensor, Mapping[str, Tensor]]:
            loss, grads = closure(params)
            return loss, self._applied(params, grads, slots, buckets, traced=False)[0]

        return transformed


def chain(**parts: Transform | Optimizer) -> Chain:
    """Put transforms before an optimizer; the names are those of their slots in the state.

    >>> from purerun.optim import SGD, ClipNorm
    >>> clipped = chain(clip=ClipNorm(1.0), sgd=SGD(lr=0.1, momentum=0.9))
    >>> [name for name, value in clipped.hyper().items() if value]
    ['lr', 'momentum', 'clip.max_norm']
    """
    return Chain(parts)


def _groups(parts: Mapping[str, Any]) -> tuple[Group, ...]:
    # Runs before the validator that says what is wrong with the parts.
    last = list(parts.values())[-1:]
    return last[0].groups if last and isinstance(last[0], Optimizer) else ()
