"""Fresh weights as functions of a key: rules that say what parameters begin with.

Each parameter draws from a key of its own name, so a layer more or less changes no other's weights.  The
formulas are those of `torch.nn.init`; the rules are MMEngine's `init_cfg`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs
import torch
from torch import Generator, Tensor, nn
from torch.nn import init

from purerun.optim.match import Match, Name, ParamInfo, inspect, matching
from purerun.random import Key, keyed_everywhere
from purerun.valid import above, between, number, one_of

_OPTIONAL = attrs.validators.optional


class InitialError(ValueError):
    """A rule and a model do not fit each other."""


@attrs.frozen
class Rule(ABC):
    """What the parameters that it matches begin with; of several rules for one, the last counts.

    Attributes:
        match: which parameters, as in `pr.optim.Group`: a glob pattern of names, `Kind("conv")`, a type of
            module, ...
        bias: what the biases among them begin with; None to leave them as they are.
        bias_prob: the same as a probability: the value whose sigmoid it is.
        optional: whether the rule may match nothing.
    """

    match: Match = attrs.field(converter=matching)
    bias: float | None = attrs.field(default=0.0, kw_only=True, validator=_OPTIONAL(number(-math.inf)))
    bias_prob: float | None = attrs.field(default=None, kw_only=True, validator=_OPTIONAL(between(0, 1)))
    optional: bool = attrs.field(default=False, kw_only=True)

    @property
    def last(self) -> bool:
        """Whether this rule comes after all others, wherever it stands among them."""
        return False

    @abstractmethod
    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Write a weight's first values into a tensor on the CPU."""

    def fill(self, key: Key, info: ParamInfo, like: Tensor) -> Tensor:
        """Make what one parameter begins with: a function of the key.

        Args:
            key: of this parameter.
            info: what it is.
            like: as it is now; stays so.

        Raises:
            InitialError: the formula needs another shape.

        >>> rule, like = Normal("*"), torch.zeros(3)
        >>> info = ParamInfo("fc.weight", like.shape)
        >>> torch.equal(rule.fill(Key.of(0), info, like), torch.randn(3, generator=Key.of(0).generator()))
        True
        """
        value = self._bias()
        if "bias" in info.kinds and self._own_bias:
            return like.detach().clone() if value is None else torch.full_like(like, value, requires_grad=False)
        # On the CPU, so that all devices begin with the same.
        made = torch.empty_like(like, device="cpu", requires_grad=False)
        try:
            self.draw(made, key.generator())
        except ValueError as error:
            raise InitialError(
                f"expected parameters that {type(self).__name__} can fill, got `{info.name}` {list(info.shape)}: "
                f"{error}; narrow the match"
            ) from error
        return made.to(like.device)

    def make(self, seed: int, infos: Mapping[str, ParamInfo], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make what the matched parameters begin with.

        Args:
            seed: of the run.
            infos: the parameters.
            tensors: parameters and buffers as they are.

        Raises:
            InitialError: nothing matches.
        """
        names = [name for name, info in infos.items() if self.match(info)]
        if not names and not self.optional:
            raise InitialError(
                f"expected {self.match} to match a parameter, got none; {self.match.hint(infos)}; "
                "change the rule, or allow it to match nothing with optional=True"
            )
        return {name: self.fill(Key.of(seed, "init", name), infos[name], tensors[name]) for name in names}

    @property
    def _own_bias(self) -> bool:
        """Whether biases begin with something else than the other parameters."""
        return True

    def _bias(self) -> float | None:
        return self.bias if self.bias_prob is None else -math.log((1 - self.bias_prob) / self.bias_prob)


@attrs.frozen
class Constant(Rule):
    """Begin with one number, biases too unless `bias` or `bias_prob` says otherwise.

    >>> model = nn.Linear(2, 1)
    >>> begun([Constant("weight", 0.5), Constant("bias", bias_prob=0.01)], model, seed=0)["bias"]
    tensor([-4.5951])
    """

    value: float = attrs.field(default=0.0, validator=number(-math.inf))
    bias: float | None = attrs.field(default=None, kw_only=True, validator=_OPTIONAL(number(-math.inf)))

    @property
    def _own_bias(self) -> bool:
        return self._bias() is not None

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Fill."""
        init.constant_(tensor, self.value)


@attrs.frozen
class Normal(Rule):
    """Draw from a normal distribution."""

    mean: float = attrs.field(default=0.0, validator=number(-math.inf))
    std: float = attrs.field(default=1.0, validator=number(0))

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Draw."""
        init.normal_(tensor, self.mean, self.std, generator=generator)


@attrs.frozen
class TruncNormal(Rule):
    """Draw from a normal distribution cut off at `low` and `high`."""

    mean: float = attrs.field(default=0.0, validator=number(-math.inf))
    std: float = attrs.field(default=1.0, validator=above(0))
    low: float = attrs.field(default=-2.0, validator=number(-math.inf))
    high: float = attrs.field(default=2.0, validator=number(-math.inf))

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Draw."""
        init.trunc_normal_(tensor, self.mean, self.std, self.low, self.high, generator=generator)


@attrs.frozen
class Uniform(Rule):
    """Draw from between `low` and `high`."""

    low: float = attrs.field(default=0.0, validator=number(-math.inf))
    high: float = attrs.field(default=1.0, validator=number(-math.inf))

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Draw."""
        init.uniform_(tensor, self.low, self.high, generator=generator)


Distribution = Literal["normal", "uniform"]


@attrs.frozen
class Xavier(Rule):
    """Draw with a variance of `gain**2 * 2 / (fan_in + fan_out)` (Glorot & Bengio, AISTATS 2010)."""

    gain: float = attrs.field(default=1.0, validator=number(0))
    distribution: Distribution = attrs.field(default="normal", validator=one_of("normal", "uniform"))

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Draw."""
        formula = init.xavier_normal_ if self.distribution == "normal" else init.xavier_uniform_
        formula(tensor, self.gain, generator=generator)


@attrs.frozen
class Kaiming(Rule):
    """Draw with a variance of `gain**2 / fan` (He et al., arXiv:1502.01852).

    Attributes:
        a: the slope of a leaky ReLU below 0.
        mode: "fan_out" keeps the variance in the backward pass, "fan_in" in the forward pass.
        nonlinearity: what comes after; a name that `torch.nn.init.calculate_gain` knows.
        distribution: "normal" or "uniform".
    """

    a: float = attrs.field(default=0.0, validator=number(-math.inf))
    mode: Literal["fan_in", "fan_out"] = attrs.field(default="fan_out", validator=one_of("fan_in", "fan_out"))
    nonlinearity: Literal["relu", "leaky_relu", "linear", "tanh", "sigmoid", "selu"] = attrs.field(
        default="relu", validator=one_of("relu", "leaky_relu", "linear", "tanh", "sigmoid", "selu")
    )
    distribution: Distribution = attrs.field(default="normal", validator=one_of("normal", "uniform"))

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Draw."""
        formula = init.kaiming_normal_ if self.distribution == "normal" else init.kaiming_uniform_
        formula(tensor, self.a, self.mode, self.nonlinearity, generator=generator)


@attrs.frozen
class Caffe2Xavier(Rule):
    """Draw as Caffe2's XavierFill does: evenly, with a variance of `1 / fan_in`."""

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Draw."""
        init.kaiming_uniform_(tensor, 1.0, "fan_in", "leaky_relu", generator=generator)


def _nothing(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        raise ValueError(
            f"expected {type(owner).__name__} to take biases as they are made, got {attribute.name}={value!r}; add "
            "pr.initial.Constant('*bias', ...) after it"
        )


def _makes(owner: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not callable(value) and not hasattr(value, "build"):
        raise TypeError(f"expected {type(owner).__name__} of a function that makes the module, got {value!r}")


class Builder(Protocol):
    """What makes a module whose weights are a function of a key, as `pr.Module` does."""

    def build(self, key: Key) -> nn.Module:
        """Make it."""


@attrs.frozen
class Fresh(Rule):
    """Begin with the parameters and buffers of a module that is made anew under the key of the seed.

    With it the members of a sweep of seeds begin with weights of their own; a recipe that sweeps does so by itself.

    Attributes:
        target: `target()` -> a module like the model, from whatever generators; or a `pr.Module`.
        match: which parameters and buffers, by name.

    >>> net = lambda: nn.Linear(2, 1)
    >>> one, same, other = (begun([Fresh(net)], net(), seed)["weight"] for seed in (1, 1, 2))
    >>> torch.equal(one, same), torch.equal(one, other)
    (True, False)
    """

    match: Match = attrs.field(default=Name("*"), converter=matching, kw_only=True)
    target: Callable[[], nn.Module] | Builder = attrs.field(validator=_makes)
    bias: float | None = attrs.field(default=None, kw_only=True, validator=_nothing)
    bias_prob: float | None = attrs.field(default=None, kw_only=True, validator=_nothing)

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Refuse: a module is made as a whole.

        Raises:
            InitialError: always.
        """
        raise InitialError("expected a rule that draws tensor by tensor; a fresh module is made with `make`")

    def make(self, seed: int, infos: Mapping[str, ParamInfo], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make the module and take what it begins with.

        Raises:
            InitialError: it is not like the model, or nothing matches.
        """
        module = self._module(Key.of(seed, "init"))
        found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        made = {}
        for name, like in tensors.items():
            if self.match(infos.get(name, ParamInfo(name, like.shape))):
                if name not in found or found[name].shape != like.shape:
                    got = f"one of {list(found[name].shape)}" if name in found else "none"
                    raise InitialError(
                        f"expected a fresh module with `{name}` of shape {list(like.shape)}, as the model, got {got}; "
                        "make both by one function"
                    )
                made[name] = found[name].detach().to(like)
        if not made and not self.optional:
            raise InitialError(f"expected {self.match} to match a parameter or a buffer, got none; change the rule")
        return made

    def _module(self, key: Key) -> nn.Module:
        if not callable(self.target):
            return self.target.build(key)
        with keyed_everywhere(key):
            module = self.target()
        if not isinstance(module, nn.Module):
            raise InitialError(f"expected a function that makes a module like the model, got {type(module).__name__}")
        return module


def begun(rules: Sequence[Rule], model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Make what the tensors of a model begin with that some rule is about; the model stays as it is.

    Args:
        rules: in order; later ones win.
        model: whose parameters they match.
        seed: of the run.

    Raises:
        InitialError: a rule matches nothing, or something that it cannot fill.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    >>> sorted(begun([Kaiming(nn.Linear), Constant("1.weight", 1.0)], model, seed=0))
    ['0.bias', '0.weight', '1.weight']
    """
    infos = inspect(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    made: dict[str, Tensor] = {}
    for rule in sorted(rules, key=lambda rule: rule.last):
        made |= rule.make(seed, infos, tensors)
    return made
