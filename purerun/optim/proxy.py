"""A live torch optimizer that is lent a state for one step and remembers nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from purerun.optim.cells import ABSENT, Cell, Unkeepable
from purerun.optim.knobs import Knob, turned
from purerun.optim.layout import aligned
from purerun.optim.optimizer import Buckets, Closure, Params, Slots, pick
from purerun.state import lazy_clone

GROUP = "group."
"""What stands before the slots of what an optimizer changes in its parameter groups."""


@attrs.frozen
class Memory:
    """Which cells keep what an optimizer remembers.

    Attributes:
        entries: parameter -> entry of `optimizer.state` -> cell.
        groups: key of a parameter group that the optimizer changes -> cell.  A group belongs to
            no parameter, so each of its parameters keeps a copy.
    """

    entries: Mapping[str, Mapping[str, Cell]]
    groups: Mapping[str, Cell]

    @property
    def prefixed(self) -> dict[str, Cell]:
        """The cells of groups, by the names of their slots."""
        return {GROUP + key: cell for key, cell in self.groups.items()}

    def blank(self) -> Slots:
        """Make the slots of an optimizer that has not started."""
        slots: Slots = {"started": torch.zeros((), dtype=torch.bool)}
        for name, cells in self.entries.items():
            for entry, cell in (dict(cells) | self.prefixed).items():
                leaf = cell.blank()
                if leaf is not None:
                    slots.setdefault(entry, {})[name] = leaf
        return slots


class Proxy:
    """An optimizer over stand-ins, which are lent the tensors of parameters for one step.

    Args:
        cls: the optimizer's class.
        options: its keyword arguments.
        knobs: its hyper-parameters.
        groups: the names of the parameters of each group.
        params: the parameters, as the optimizer's constructor sees them.
    """

    def __init__(
        self,
        cls: type[torch.optim.Optimizer],
        options: Mapping[str, Any],
        knobs: Sequence[Knob],
        groups: Iterable[tuple[str, ...]],
        params: Params,
    ) -> None:
        groups = list(groups)
        self._knobs = knobs
        self._stand_ins = {name: torch.nn.Parameter(params[name]) for names in groups for name in names}
        self._names = {id(stand_in): name for name, stand_in in self._stand_ins.items()}
        self._nothing = {name: params[name].new_empty(0) for name in self._stand_ins}
        lists = [pick(self._stand_ins, names) for names in groups]
        given = lists[0] if len(lists) == 1 else [{"params": some} for some in lists]
        self.optimizer = cls(given, **options)

    def advance(
        self,
        memory: Memory,
        params: Params,
        grads: Params,
        slots: Slots,
        buckets: Buckets,
        closure: Closure | None = None,
    ) -> None:
        """Let the optimizer do one step on parameters and slots that the caller owns."""
        self.lend(params, grads)
        if slots["started"].item():
            self._recall(memory, slots, buckets)
        else:
            slots["started"] = torch.ones((), dtype=torch.bool)
        before = self._turn(buckets)
        self.step(closure)
        self._remember(memory, slots, buckets, before)
        self.settle(params)

    def lend(self, params: Params, grads: Params) -> None:
        """Give the stand-ins the tensors of parameters and gradients."""
        names = list(self._stand_ins)
        tensors = pick(params, names)
        # A gradient is laid out as backward() would, and cloned, because some optimizers write into it.
        for name, tensor, grad in zip(names, tensors, aligned((tensors, pick(grads, names)))[1], strict=True):
            stand_in = self._stand_ins[name]
            stand_in.data, stand_in.grad = tensor, lazy_clone(grad)

    def step(self, closure: Closure | None) -> None:
        """Run the optimizer's own step."""
        with torch.no_grad():
            if closure is None:
                self.optimizer.step()
            else:
                self.optimizer.step(lambda: self._evaluate(closure))  # type: ignore[arg-type, return-value]

    def settle(self, params: Params) -> None:
        """Take the tensors back from the stand-ins."""
        for name, stand_in in self._stand_ins.items():
            if not stand_in.is_set_to(params[name]):  # the optimizer put another tensor in its place
                params[name].copy_(stand_in.detach())
            stand_in.grad, stand_in.data = None, self._nothing[name]
        self.optimizer.state.clear()

    def remembered(self) -> dict[str, dict[str, Any]]:
        """List what the optimizer keeps about each parameter.

        Raises:
            Unkeepable: it keeps something that belongs to no parameter.
        """
        names, state = self._names, self.optimizer.state
        strange = [key for key in state if id(key) not in names]
        if strange:
            raise Unkeepable(f"expected memories of parameters, got one under {strange[:3]!r}")
        return {names[id(key)]: entries for key, entries in state.items()}

    def _evaluate(self, closure: Closure) -> Tensor:
        loss, grads = closure({name: stand_in.detach() for name, stand_in in self._stand_ins.items()})
        for name, stand_in in self._stand_ins.items():
            stand_in.grad = lazy_clone(grads[name])
        return loss

    def _recall(self, memory: Memory, slots: Slots, buckets: Buckets) -> None:
        state = self.optimizer.state
        state.clear()
        for name, stand_in in self._stand_ins.items():
            entries = _loaded(memory.entries[name], slots, name)
            if entries:
                state[stand_in] = entries
        if memory.groups:
            for group, bucket in zip(self.optimizer.param_groups, buckets, strict=True):
                kept = _loaded(memory.prefixed, slots, bucket.names[0])
                group.update({key.removeprefix(GROUP): value for key, value in kept.items()})

    def _remember(self, memory: Memory, slots: Slots, buckets: Buckets, before: Sequence[Mapping[str, Any]]) -> None:
        remembered = self.remembered()
        for name in self._stand_ins:
            _keep(memory.entries[name], remembered.get(name, {}), slots, name)
        for group, bucket, old in zip(self.optimizer.param_groups, buckets, before, strict=True):
            changed = changes(old, group) | memory.groups.keys()
            values = {GROUP + key: group[key] for key in changed if key in group}
            for name in bucket.names if changed else ():
                _keep(memory.prefixed, values, slots, name)

    def _turn(self, buckets: Buckets) -> list[dict[str, Any]]:
        """Set the hyper-parameters; return what the groups hold then."""
        for group, bucket in zip(self.optimizer.param_groups, buckets, strict=True):
            group.update(turned(self._knobs, self.optimizer.defaults, bucket.hyper))
        return [dict(group) for group in self.optimizer.param_groups]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    """List the keys of a parameter group that differ.

    >>> sorted(changes({"lr": 0.1, "k": 0}, {"lr": 0.1, "k": 1, "d": 2.0}))
    ['d', 'k']
    """
    return {
        key
        for key, value in new.items()
        if key != "params" and old.get(key, ABSENT) is not value and not _equal(old.get(key, ABSENT), value)
    }


def signature(params: Params, names: Iterable[str]) -> tuple[Any, ...]:
    """Say what a layout depends on: names, shapes, dtypes and devices."""
    return tuple((name, (tensor := params[name]).shape, tensor.dtype, tensor.device) for name in names)


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return isinstance(old, Tensor) and isinstance(new, Tensor) and torch.equal(old, new)
    return type(old) is type(new) and bool(old == new)


def _loaded(cells: Mapping[str, Cell], slots: Slots, name: str) -> dict[str, Any]:
    values = {}
    for entry, cell in cells.items():
        leaves = slots.get(entry)
        value = cell.load(leaves.get(name) if leaves else None)
        if value is not ABSENT:
            values[entry] = value
    return values


def _keep(cells: Mapping[str, Cell], values: Mapping[str, Any], slots: Slots, name: str) -> None:
    for entry, cell in cells.items():
        leaves, value = slots.get(entry), values.get(entry, ABSENT)
        old = leaves.get(name) if leaves else None
        if value is old:  # it was written into
            continue
        try:
            leaf = cell.keep(value, old)
        except Unkeepable as error:
            raise Unkeepable(f"expected the memory {entry!r} of `{name}` to be {error}") from None
        if leaf is not None:
            slots[entry][name] = leaf
    if not values.keys() <= cells.keys():
        new = sorted(values.keys() - cells.keys())
        raise Unkeepable(f"expected no memory but {sorted(cells)} of `{name}`, as in its first steps, got {new} too")
