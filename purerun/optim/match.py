"""Which parameters a rule is about: by name, kind, type of module, dimensions or any function.

Matches are values and combine with `&`, `|` and `~`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from purerun.valid import several

_KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "attention": (nn.MultiheadAttention,),
    "conv": (_ConvNd,),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "linear": (nn.Linear, nn.Bilinear),
    "norm": (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
}
KINDS = (*sorted([*_KINDS, "bias", "deformable", "depthwise"]),)
"""What `Kind` knows."""


@attrs.frozen
class ParamInfo:
    """What a rule may look at.

    Attributes:
        name: the name in the `state_dict`.
        shape: the shape.
        module: the type of the module that holds the parameter; None where only tensors are known.
        kinds: what it is, see `Kind`.
    """

    name: str
    shape: torch.Size
    module: type[nn.Module] | None = None
    kinds: frozenset[str] = frozenset()


def inspect(model: nn.Module) -> dict[str, ParamInfo]:
    """Describe each parameter of a model; a shared one under its first name.

    >>> infos = inspect(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)))
    >>> {name: sorted(info.kinds) for name, info in infos.items()}
    {'0.weight': ['conv', 'depthwise'], '0.bias': ['bias', 'conv', 'depthwise'], '1.weight': ['norm'], \
'1.bias': ['bias', 'norm']}
    """
    modules = dict(model.named_modules())
    infos = {}
    for name, param in model.named_parameters():
        path, own = _held(name)
        parent = modules.get(path.rpartition(".")[0]) if path else None
        infos[name] = ParamInfo(name, param.shape, type(modules[path]), _kinds(modules[path], own, parent))
    return infos


class Match(ABC):
    """A predicate of parameters, as a value."""

    @abstractmethod
    def __call__(self, info: ParamInfo) -> bool:
        """Say whether a parameter is meant."""

    def hint(self, infos: Mapping[str, ParamInfo]) -> str:
        """Say what could have been meant when nothing matched."""
        return f"there are {len(infos)} parameters, such as {', '.join(f'`{name}`' for name in list(infos)[:3])}"

    def __and__(self, other: Match) -> Match:
        return Both(self, other)

    def __or__(self, other: Match) -> Match:
        return OneOf(self, other)

    def __invert__(self) -> Match:
        return Not(self)


def _each(wanted: type, said: str) -> Callable[[Any, Any, tuple[Any, ...]], None]:
    def validate(_instance: Any, _attribute: Any, items: tuple[Any, ...]) -> None:
        if not items or not all(isinstance(item, wanted) for item in items):
            raise TypeError(f"expected {said}, got {items if len(items) != 1 else items[0]!r}")

    return validate


@attrs.frozen
class Name(Match):
    """Parameters whose name matches one of some glob patterns (`*` matches dots too).

    Attributes:
        patterns: a pattern, or several.

    >>> Name(["backbone.*", "*.bias"])(ParamInfo("head.bias", torch.Size([3])))
    True
    """

    patterns: tuple[str, ...] = attrs.field(converter=several, validator=_each(str, "patterns such as 'backbone.*'"))

    def __call__(self, info: ParamInfo) -> bool:
        """Compare the name with each pattern."""
        return any(fnmatchcase(info.name, pattern) for pattern in self.patterns)

    def hint(self, infos: Mapping[str, ParamInfo]) -> str:
        """List the names that look most alike."""
        near = [name for pattern in self.patterns for name in _near(pattern, infos)]
        return f"near it: {', '.join(f'`{name}`' for name in dict.fromkeys(near))}" if near else super().hint(infos)


def _known(_instance: Any, _attribute: Any, kinds: tuple[str, ...]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if not kinds or unknown:
        raise ValueError(f"expected kinds among {', '.join(KINDS)}, got {', '.join(map(repr, unknown)) or 'none'}")


@attrs.frozen
class Kind(Match):
    """Parameters that are one of some kinds of things.

    "norm", "conv", "linear", "embedding", "recurrent", "attention" say what holds them;
    "depthwise" a convolution with a filter for each channel, "deformable" a part of a
    deformable convolution; "bias" that they are added.

    Attributes:
        kinds: a kind, or several.

    >>> (Kind("bias") & ~Kind("norm"))(ParamInfo("fc.bias", torch.Size([3]), nn.Linear, frozenset({"bias", "linear"})))
    True
    """

    kinds: tuple[str, ...] = attrs.field(converter=several, validator=_known)

    def __call__(self, info: ParamInfo) -> bool:
        """Look at the kinds of a parameter."""
        return not info.kinds.isdisjoint(self.kinds)

    def hint(self, infos: Mapping[str, ParamInfo]) -> str:
        """List the kinds that are there."""
        there = sorted(set().union(*(info.kinds for info in infos.values())))
        return f"the parameters of this model are of the kinds {', '.join(there) or 'none'}"


@attrs.frozen
class Type(Match):
    """Parameters that are held by a module of one of some types.

    Attributes:
        types: a type of modules, or several.

    >>> Type(nn.Linear)(ParamInfo("fc.bias", torch.Size([3]), nn.Linear))
    True
    """

    types: tuple[type[nn.Module], ...] = attrs.field(
        converter=several, validator=_each(type, "types of modules such as nn.LayerNorm")
    )

    def __call__(self, info: ParamInfo) -> bool:
        """Look at the type of the module."""
        return info.module is not None and issubclass(info.module, self.types)

    def hint(self, infos: Mapping[str, ParamInfo]) -> str:
        """List the types that are there."""
        there = sorted({info.module.__name__ for info in infos.values() if info.module is not None})
        return f"the modules that hold parameters are {', '.join(there)}"


@attrs.frozen
class Ndim(Match):
    """Parameters of one of some numbers of dimensions.

    Attributes:
        counts: a number of dimensions, or several.

    >>> Ndim(2)(ParamInfo("fc.weight", torch.Size([3, 4])))
    True
    """

    counts: tuple[int, ...] = attrs.field(converter=several, validator=_each(int, "numbers of dimensions such as 1"))

    def __call__(self, info: ParamInfo) -> bool:
        """Look at the shape."""
        return len(info.shape) in self.counts


@attrs.frozen
class Where(Match):
    """Parameters of which a function says so.

    Attributes:
        function: `function(info) -> bool`; a named one, so that the fingerprint can say it.
    """

    function: Callable[[ParamInfo], bool] = attrs.field(validator=attrs.validators.is_callable())

    def __call__(self, info: ParamInfo) -> bool:
        """Ask the function."""
        return bool(self.function(info))


@attrs.frozen
class Both(Match):
    """Parameters that two matches mean."""

    one: Match
    other: Match

    def __call__(self, info: ParamInfo) -> bool:
        """Ask both."""
        return self.one(info) and self.other(info)


@attrs.frozen
class OneOf(Match):
    """Parameters that one or the other of two matches means."""

    one: Match
    other: Match

    def __call__(self, info: ParamInfo) -> bool:
        """Ask one, then the other."""
        return self.one(info) or self.other(info)


@attrs.frozen
class Not(Match):
    """Parameters that a match does not mean."""

    match: Match

    def __call__(self, info: ParamInfo) -> bool:
        """Ask, and answer the opposite."""
        return not self.match(info)


def matching(given: Any) -> Match:
    """Read what a user may say for a match: a glob, several, a match, or a function.

    >>> matching("*.bias"), matching(["a.*", "b.*"])
    (Name(patterns=('*.bias',)), Name(patterns=('a.*', 'b.*')))
    """
    if isinstance(given, Match):
        return given
    if isinstance(given, str | list | tuple):
        return Name(given)
    if isinstance(given, type) and issubclass(given, nn.Module):
        return Type(given)
    if callable(given):
        return Where(given)
    raise TypeError(
        f"expected a glob pattern, several of them, a match such as Kind('norm') or a function, got {given!r}"
    )


def infos_of(params: Mapping[str, Tensor]) -> dict[str, ParamInfo]:
    """Describe tensors of which no module is known: by name and shape only."""
    return {name: ParamInfo(name, param.shape) for name, param in params.items()}


def _held(name: str) -> tuple[str, str]:
    """Split a name into the path of the module that a parameter belongs to and its own name there."""
    path, own = name.rpartition(".")[::2]
    if ".parametrizations." in f".{path}":
        # torch's parametrizations hold `weight` as `parametrizations.weight.original0`, in a list of their own.
        path, _, own = f".{path}".rpartition(".parametrizations.")
        path = path.removeprefix(".")
    return path, own


def _kinds(module: nn.Module, own: str, parent: nn.Module | None) -> frozenset[str]:
    return frozenset(_found(module, own, parent))


def _found(module: nn.Module, own: str, parent: nn.Module | None) -> Iterator[str]:
    yield from (kind for kind, types in _KINDS.items() if isinstance(module, types))
    if own == "bias" or own.startswith("bias_") or own.endswith("_bias"):
        yield "bias"
    if isinstance(module, _ConvNd) and module.groups == module.in_channels:
        yield "depthwise"
    # By name, since mmcv need not be installed.
    if parent is not None and any("DeformConv2d" in base.__name__ for base in type(parent).__mro__):
        yield "deformable"


def _near(pattern: str, infos: Mapping[str, ParamInfo]) -> list[str]:
    return difflib.get_close_matches(pattern.strip("*"), list(infos), n=3, cutoff=0.3)
