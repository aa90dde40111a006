"""Chance in a program that runs once for many members: each member draws from a stream of its own.

`torch.vmap` turns the draws of all members into one draw of a tensor with a dimension more.  Here such a draw
is taken apart again: each member's part comes from that member's generator, in the way in which it would come
if the member ran alone.  So the masks of a member are those of its solo run, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from purerun.random import Key

_RANDOM = torch.Tag.nondeterministic_seeded


class ChanceError(RuntimeError):
    """Something draws at random in a way that cannot be taken apart into members."""


class Streams(TorchDispatchMode):
    """A `with` block in which every random draw of a mapped program is one draw for each key.

    >>> keys = [Key.of(0), Key.of(1)]
    >>> with Streams(keys):
    ...     both = torch.vmap(lambda x: torch.rand_like(x), randomness="different")(torch.zeros(2, 3))
    >>> torch.equal(both[1], torch.rand(3, generator=keys[1].generator()))
    True
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__()
        self._keys = keys
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _RANDOM not in func.tags or any(isinstance(arg, FakeTensor) for arg in args):
            return func(*args, **kwargs)
        return self._drawn(func, args, kwargs)

    def _drawn(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if kwargs.get("generator") is not None:
            raise ChanceError(
                f"expected draws from torch's global generator, got {func} with one of its own, which has no stream "
                "for each member; leave the generator out"
            )
        given = list(self._parts(func, args))
        parts = [func(*own, **kwargs) for own, _ in zip(given, self._turns(_device(args, kwargs)), strict=True)]
        if func._schema.is_mutable:
            return args[0]
        if not all(isinstance(part, Tensor) for part in parts):
            raise _unknown(func)
        return _joined(parts, args[0])

    def _parts(self, func: Any, args: tuple[Any, ...]) -> Iterator[list[Any]]:
        """Take the arguments of a draw apart: tensors along their first dimension, and the sizes of new ones."""
        names = [argument.name for argument in func._schema.arguments]
        count, tensors = len(self._keys), [arg for arg in args if isinstance(arg, Tensor)]
        sizes = [arg for name, arg in zip(names, args, strict=False) if name == "size"]
        if not (tensors or sizes) or any(list(each.shape)[:1] != [count] for each in tensors):
            raise _unknown(func)
        if any(list(size)[:1] != [count] for size in sizes):
            raise _unknown(func)
        for member in range(count):
            yield [
                arg[member] if isinstance(arg, Tensor) else arg[1:] if name == "size" else arg
                for name, arg in zip(names, args, strict=False)
            ]

    def _turns(self, device: torch.device) -> Iterator[None]:
        """Let torch's global generator stand where each member's own stands, one after the other."""
        shared = default_generator(device)
        if device not in self._generators:
            self._generators[device] = [key.generator(device) for key in self._keys]
        before = shared.get_state()
        try:
            for own in self._generators[device]:
                shared.set_state(own.get_state())
                yield
                own.set_state(shared.get_state())
        finally:
            shared.set_state(before)


def default_generator(device: torch.device) -> torch.Generator:
    """Give the generator that draws on a device read when they are given none."""
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


def draws(device: torch.device, run: Callable[[], Any]) -> tuple[Any, bool]:
    """Run something, and say whether it drew from the generator of a device.

    >>> draws(torch.device("cpu"), lambda: 1), draws(torch.device("cpu"), lambda: torch.rand(1).shape)[1]
    ((1, False), True)
    """
    generator = default_generator(device)
    before = generator.get_state()
    result = run()
    return result, not torch.equal(before, generator.get_state())


def _device(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")


def _joined(parts: list[Tensor], like: Any) -> Tensor:
    """Put the parts together, in the memory layout in which torch would have made the whole."""
    if isinstance(like, Tensor):
        return torch.stack(parts, out=torch.empty_like(like, dtype=parts[0].dtype))
    return torch.stack(parts)


def _unknown(func: Any) -> ChanceError:
    return ChanceError(
        f"expected draws that can be made for each member by itself, got {func}, which cannot; draw with torch.rand, "
        "randn, bernoulli, normal, randint or dropout"
    )
