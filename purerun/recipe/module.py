"""A module as a frozen value: what to call, and with what, to make it with fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import attrs
from torch import nn

from purerun.random import Key, keyed_everywhere
from purerun.recipe.call import Argument, arguments, named, vet
from purerun.recipe.error import RecipeError


@attrs.frozen(init=False, repr=False)
class Module:
    """A class or function that makes an `nn.Module`, and its keyword arguments.

    The module itself is no value: it has weights, which chance makes.  `build(key)` makes it
    anew, with weights that are a function of the key.  An argument that is a Module is built
    too, so a model of parts is a tree of these.

    Args:
        target: the class or function.
        given: its keyword arguments, checked against its signature now.

    Raises:
        RecipeError: the target cannot be called with these arguments.

    >>> Module(nn.Linear, in_features=2, out_features=3)
    Module(Linear, in_features=2, out_features=3)
    >>> Module(nn.Linear, in_features=2, out_featurs=3)
    Traceback (most recent call last):
    ...
    purerun.recipe.error.RecipeError: Linear takes no argument 'out_featurs'; did you mean 'out_features'...
    """

    target: Callable[..., nn.Module]
    given: tuple[tuple[str, Any], ...]

    def __init__(self, target: Callable[..., nn.Module], /, **given: Any) -> None:
        if isinstance(target, nn.Module) or not callable(target):
            raise RecipeError(
                f"expected a class or function that makes the module, got {type(target).__name__}; "
                "write pr.Module(Net, width=32), so that each run starts from fresh weights"
            )
        vet(target, given)
        self.__attrs_init__(target, tuple(given.items()))  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        inner = (f"{name}={value!r}" for name, value in self.given)
        return f"Module({', '.join((named(self.target), *inner))})"

    @property
    def arguments(self) -> dict[str, Argument]:
        """What the target is called with, by name: also what it takes by default."""
        return arguments(self.target, dict(self.given))

    def replace(self, **given: Any) -> Self:
        """Make the value with some arguments changed.

        >>> Module(nn.Linear, in_features=2, out_features=3).replace(out_features=4)
        Module(Linear, in_features=2, out_features=4)
        """
        return type(self)(self.target, **{**dict(self.given), **given})

    def build(self, key: Key) -> nn.Module:
        """Make the module, on the CPU.  Its weights are a function of the key; no generator is disturbed.

        Raises:
            RecipeError: the target made something else.

        >>> linear = Module(nn.Linear, in_features=2, out_features=3)
        >>> first, second = linear.build(Key.of(0, "init")), linear.build(Key.of(0, "init"))
        >>> torch.equal(first.weight, second.weight)
        True
        """
        # A part has a chance of its own: its weights do not depend on what is made before it.
        parts = {
            name: value.build(key.fold_in(name)) if isinstance(value, Module) else value for name, value in self.given
        }
        with keyed_everywhere(key):
            module = self.target(**parts)
        if not isinstance(module, nn.Module):
            raise RecipeError(f"expected {named(self.target)} to make an nn.Module, got {type(module).__name__}")
        return module
