"""An `nn.Module` as a function of its tensors: run on given parameters and buffers.

The places where a module keeps its tensors are looked up once; binding then writes
the given tensors there and puts the module's own back at the end, whatever happens.
A module is left as it was: weights, buffers, training flags and plain attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Slot: TypeAlias = tuple[dict[str, Any], str, str]
"""A place where a module keeps a tensor: the dict, the key in it, and the tensor's name."""

Flags: TypeAlias = list[tuple[dict[str, Any], bool]]
"""The attributes of each inner module, and whether it is to be in training mode."""


class ModelError(ValueError):
    """A module cannot be run as a pure function of its tensors."""


class Binding:
    """The slots of one module, found once and used for every step.

    A tensor that stands in several places (tied weights) has one name, the first, and
    several slots, so that it stays tied.  Not for two threads at once: they would bind
    the same module.

    >>> binding = Binding(nn.Linear(2, 1))
    >>> with binding(dict(weight=torch.ones(1, 2), bias=torch.zeros(1)), {}, training=False) as model:
    ...     model(torch.tensor([[3.0, 4.0]]))
    tensor([[7.]])
    """

    def __init__(self, module: nn.Module) -> None:
        _refuse(module)
        self.module = module
        self.params = dict(module.named_parameters())
        self.buffers = dict(module.named_buffers())
        self._params = _slots(module, "_parameters", self.params)
        self._buffers = _slots(module, "_buffers", self.buffers)
        self._modes = {training: _modes(module, training=training) for training in (True, False)}
        self._watch = True

    def __call__(self, params: Mapping[str, Tensor], buffers: dict[str, Tensor], *, training: bool) -> _Bound:
        """Bind tensors for a `with` block.

        Args:
            params: one tensor for each parameter name.
            buffers: one tensor for each buffer name; the forward may write into them, and
                at the end of the block the mapping holds what the module's slots hold,
                so that a rebound buffer comes out as well.
            training: run in training or in evaluation mode.
        """
        return _Bound(self, params, buffers, self._modes[training])


class _Bound:
    """One `with` block of a binding."""

    __slots__ = ("_attributes", "_binding", "_buffers", "_flags", "_flipped", "_own", "_params")

    def __init__(
        self, binding: Binding, params: Mapping[str, Tensor], buffers: dict[str, Tensor], flags: Flags
    ) -> None:
        self._binding, self._params, self._buffers, self._flags = binding, params, buffers, flags

    def __enter__(self) -> nn.Module:
        binding, params, buffers = self._binding, self._params, self._buffers
        self._attributes = _attributes(binding.module) if binding._watch else None
        self._flipped = [(place, place["training"]) for place, flag in self._flags if place["training"] is not flag]
        for place, flag in self._flipped:
            place["training"] = not flag
        self._own = [place[key] for place, key, _ in (*binding._params, *binding._buffers)]
        for place, key, name in binding._params:
            place[key] = params[name]
        for place, key, name in binding._buffers:
            place[key] = buffers[name]
        return binding.module

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        binding = self._binding
        for place, key, name in binding._buffers:
            self._buffers[name] = place[key]
        for (place, key, _), own in zip((*binding._params, *binding._buffers), self._own, strict=True):
            place[key] = own
        for place, flag in self._flipped:
            place["training"] = flag
        if self._attributes is not None:
            changed = _restore(binding.module, self._attributes)
            if kind is None:
                if changed:
                    raise _memory(binding.module, changed)
                # A forward that remembers does so on its first run: looking at every
                # attribute of every module each time would cost more than a small step.
                binding._watch = False


def _slots(module: nn.Module, kind: str, names: Mapping[str, Tensor]) -> list[Slot]:
    first = {id(tensor): name for name, tensor in names.items()}
    return [
        (inner.__dict__[kind], key, first[id(tensor)])
        for inner in module.modules()
        for key, tensor in inner.__dict__[kind].items()
        if tensor is not None
    ]


def _modes(module: nn.Module, *, training: bool) -> Flags:
    """Learn the training flags from the module's own `train()`, which may keep parts frozen."""
    before = [(inner, inner.training) for inner in module.modules()]
    try:
        module.train(training)
        return [(inner.__dict__, inner.training) for inner in module.modules()]
    finally:
        for inner, flag in before:
            inner.training = flag


_OWN = {"_parameters", "_buffers", "_modules", "training"}
# RNN layers of torch keep a list of their own weights, made anew from the slots.
_CACHES = {"_flat_weights", "_flat_weight_refs"}


def _attributes(module: nn.Module) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Note the plain attributes of every inner module: the value, and how it looks inside."""
    return {
        (path, key): (value, _inside(value))
        for path, inner in module.named_modules()
        for key, value in inner.__dict__.items()
        if key not in _OWN and not (key in _CACHES and isinstance(inner, nn.RNNBase))
    }


def _inside(value: Any) -> Any:
    """Copy what a container holds, so that a change in place shows."""
    if isinstance(value, Tensor):
        return value._version
    if isinstance(value, dict):
        return {key: id(item) for key, item in value.items()}
    if isinstance(value, list | set):
        return [id(item) for item in value]
    return None


def _restore(module: nn.Module, before: dict[tuple[str, str], tuple[Any, Any]]) -> list[str]:
    """Put plain attributes back that were rebound, and name all that changed."""
    after = _attributes(module)
    inner = dict(module.named_modules())
    changed = [place for place in {**before, **after} if not _same(before.get(place), after.get(place))]
    for path, key in changed:
        if (path, key) in before:
            inner[path].__dict__[key] = before[path, key][0]
        else:
            del inner[path].__dict__[key]
    return sorted(f"{path}.{key}".lstrip(".") for path, key in changed)


def _same(a: tuple[Any, Any] | None, b: tuple[Any, Any] | None) -> bool:
    return a is not None and b is not None and a[0] is b[0] and a[1] == b[1]


def _memory(module: nn.Module, changed: list[str]) -> ModelError:
    names = ", ".join(f"`{name}`" for name in changed)
    return ModelError(
        f"expected {type(module).__name__}.forward to leave plain Python attributes alone, but it changed {names}; "
        "what it remembers must be part of the state: keep it in a buffer (`self.register_buffer(...)`), "
        "or compute it in `__init__`"
    )


def _refuse(module: nn.Module) -> None:
    """Refuse modules whose gradients would be silently wrong under slot binding."""
    if not isinstance(module, nn.Module):
        raise ModelError(f"expected an nn.Module as the model, got {type(module).__name__}; pass the module itself")
    for path, inner in module.named_modules():
        remedy = _remedy(inner)
        if remedy:
            where = f"the model's part `{path}`" if path else "the model"
            raise ModelError(f"expected a plain nn.Module, but {where} is a {type(inner).__name__}: {remedy}")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise ModelError(
                f"expected initialised tensors, but `{name}` has no shape yet; "
                "run the model once on a batch before making a step of it"
            )
        if tensor.is_meta:
            raise ModelError(f"expected tensors with memory, but `{name}` is on the meta device; give it memory first")


def _remedy(inner: nn.Module) -> str | None:
    if isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return "its gradients would silently not be reduced; pass the inner module (`model.module`)"
    # By name: importing torch.distributed.fsdp costs a second, and the class cannot
    # be there unless somebody has imported it.
    kinds = {base.__name__ for base in type(inner).__mro__}
    if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
        return "its gradients would silently be missing; pass the module before it was sharded"
    if "OptimizedModule" in kinds:
        return "its compiled code holds the old weights; pass the module before torch.compile"
    if isinstance(inner, torch.jit.ScriptModule):
        return "its tensors cannot be exchanged; pass the Python module before torch.jit.script"
    return None
