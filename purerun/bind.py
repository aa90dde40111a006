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
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from purerun import attributes
from purerun.identity import read_bytes
from purerun.random import draws_elsewhere
from purerun.state import lazy_clone

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
        self._runs = 0
        own = {type(inner) for inner in module.modules() if not type(inner).__module__.startswith("torch.")}
        self.wide = any(draws_elsewhere(kind.forward) for kind in own)
        """Whether the forward may draw from numpy's or Python's generator: its code says so, or it was seen."""

    @property
    def watching(self) -> bool:
        """Whether the next run is looked at closely: the first, second, fourth, eighth, ...

        A forward that remembers does so on its first run, or when something is new; looking at
        every attribute of every module each time would cost more than a small step.
        """
        return not self._runs & (self._runs - 1)

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

    __slots__ = ("_before", "_binding", "_buffers", "_flags", "_flipped", "_notes", "_own", "_params")

    def __init__(
        self, binding: Binding, params: Mapping[str, Tensor], buffers: dict[str, Tensor], flags: Flags
    ) -> None:
        self._binding, self._params, self._buffers, self._flags = binding, params, buffers, flags

    def __enter__(self) -> nn.Module:
        binding, params, buffers = self._binding, self._params, self._buffers
        # Looked up before anything is written: a state that lacks one must not leave a module half bound.
        given = [params[name] for _, _, name in binding._params] + [buffers[name] for _, _, name in binding._buffers]
        slots = (*binding._params, *binding._buffers)
        self._notes = attributes.note(binding.module) if binding.watching else None
        if binding.watching:
            self._before = {name: lazy_clone(param) for name, param in params.items()}
        self._flipped = [(place, place["training"]) for place, flag in self._flags if place["training"] is not flag]
        for place, flag in self._flipped:
            place["training"] = not flag
        self._own = [place[key] for place, key, _ in slots]
        for (place, key, _), tensor in zip(slots, given, strict=True):
            place[key] = tensor
        return binding.module

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        binding, buffers = self._binding, self._buffers
        found = [place[key] for place, key, _ in binding._buffers]
        for (place, key, _), own in zip((*binding._params, *binding._buffers), self._own, strict=True):
            place[key] = own
        for place, flag in self._flipped:
            place["training"] = flag
        binding._runs += 1
        if self._notes is not None:
            self._judge(attributes.restore(binding.module, self._notes), failed=kind is not None)
        if kind is None:
            for (_, _, name), tensor in zip(binding._buffers, found, strict=True):
                if tensor is not buffers[name]:
                    buffers[name] = _rebound(name, buffers[name], tensor)

    def _judge(self, changed: list[str], *, failed: bool) -> None:
        """Refuse a forward that remembers, or that writes into parameters."""
        if failed:
            return
        if changed:
            raise _memory(self._binding.module, changed)
        for name, before in self._before.items():
            param = self._params[name]
            if is_abstract(param) or is_abstract(before):
                continue  # a transform lets nobody look at bits, and refuses writes itself
            if read_bytes(param) != read_bytes(before):
                raise ModelError(
                    f"expected the forward to leave parameters alone, but it writes into `{name}`; "
                    "change it in a wrapper around `update`"
                )


def is_abstract(tensor: Tensor) -> bool:
    """Say whether a tensor has no bits to look at: inside of `vmap` and `grad`, or while a program is traced.

    >>> is_abstract(torch.zeros(1)), torch.vmap(lambda x: x + is_abstract(x))(torch.zeros(1)).tolist()
    (False, [1.0])
    """
    return isinstance(tensor, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _rebound(name: str, given: Tensor, tensor: Any) -> Tensor:
    """Take a buffer that the forward has bound anew: its values, in memory of its own."""
    if not isinstance(tensor, Tensor) or tensor.shape != given.shape or tensor.dtype != given.dtype:
        got = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
        raise ModelError(
            f"expected the forward to keep the buffer `{name}` of {given.dtype} {list(given.shape)}, it made it {got}; "
            "make it at its full size in `__init__`"
        )
    own = tensor.detach().clone()
    return own if own.stride() == given.stride() else torch.empty_like(given).copy_(own)


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


def _memory(module: nn.Module, changed: list[str]) -> ModelError:
    names = ", ".join(f"`{name}`" for name in changed)
    return ModelError(
        f"expected {type(module).__name__}.forward to leave plain Python attributes alone, but it changed {names}; "
        "what it remembers must be part of the state: keep it in a buffer (`self.register_buffer(...)` in `__init__`), "
        "or compute it there. The old spectral_norm and weight_norm do this: use torch.nn.utils.parametrizations"
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
    for name, param in module.named_parameters():
        if param._backward_hooks or param._post_accumulate_grad_hooks:
            raise ModelError(
                f"expected parameters without hooks, but `{name}` has one, which would never run; "
                "change gradients in a wrapper around `grad`"
            )
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
