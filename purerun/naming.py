"""What a module calls its tensors in a `state_dict`, where that is not what a state calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import attrs
from torch import Tensor, nn

Value = TypeVar("Value")

_TIED, _UNSAVED = re.compile(r"tied: (.+) = (.+)"), re.compile(r"unsaved: (.+)")


@attrs.frozen
class Naming:
    """How the names of a `state_dict` differ from those of a state.

    A state has a tensor once, under the first of its names, and has every buffer.  A
    `state_dict` has a tied tensor under each of its names, and no buffer that is made anew with
    the module (`persistent=False`).  Both are part of the program, so a step says them in its
    text, and whoever has the text needs no module to know them.

    Attributes:
        first: second name of a tied tensor -> its first name.
        unsaved: the names of buffers that no file has.
    """

    first: Mapping[str, str] = attrs.field(factory=dict, converter=dict)
    unsaved: frozenset[str] = attrs.field(default=frozenset(), converter=frozenset)

    @classmethod
    def of(cls, module: nn.Module) -> Naming:
        """Learn the names of a module.

        >>> layer = nn.Linear(2, 2, bias=False)
        >>> Naming.of(nn.Sequential(layer, layer)).first
        {'1.weight': '0.weight'}
        """
        unsaved = {
            f"{path}.{name}" if path else name
            for path, inner in module.named_modules(remove_duplicate=False)
            for name in inner._non_persistent_buffers_set
        }
        firsts: dict[int, str] = {}
        second = {
            name: first for name, tensor in _named(module) if (first := firsts.setdefault(id(tensor), name)) != name
        }
        return cls({name: first for name, first in second.items() if name not in unsaved}, unsaved)

    @classmethod
    def told(cls, text: str) -> Naming:
        r"""Read the names from the text of a step.

        >>> Naming.told("\n".join(["model: Net()", *Naming({"b": "a"}, {"mask"}).lines()]))
        Naming(first={'b': 'a'}, unsaved=frozenset({'mask'}))
        """
        lines = text.splitlines()
        tied = {found[1]: found[2] for line in lines if (found := _TIED.fullmatch(line))}
        return cls(tied, {found[1] for line in lines if (found := _UNSAVED.fullmatch(line))})

    def lines(self) -> list[str]:
        """Say the names, for the text of a step; nothing where they are the same."""
        tied = (f"tied: {name} = {first}" for name, first in sorted(self.first.items()))
        return [*tied, *(f"unsaved: {name}" for name in sorted(self.unsaved))]

    def spread(self, tensors: Mapping[str, Value]) -> dict[str, Value]:
        """Name what belongs to a state as a `state_dict` does: by all names, without what no file has.

        >>> Naming(first={"head": "embed"}, unsaved={"mask"}).spread({"embed": 1, "mask": 2})
        {'embed': 1, 'head': 1}
        """
        kept = {name: tensor for name, tensor in tensors.items() if name not in self.unsaved}
        return {**kept, **{name: tensors[first] for name, first in self.first.items() if first in tensors}}


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
