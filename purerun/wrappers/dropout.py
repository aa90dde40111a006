"""The dropout probability as a hyper-parameter of the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from purerun.bind import ModelError, is_abstract
from purerun.grad import WHOLE, Grads, Pass
from purerun.state import Draft
from purerun.step import Step
from purerun.valid import floating, number
from purerun.wrappers.wrapper import Wrapped, Wrapper

NAME = "dropout"
"""The hyper-parameter."""


@attrs.frozen
class Dropout(Wrapper):
    """Give every dropout layer of the model the probability `state["hyper", "dropout"]`, whatever its own is.

    So it can be read, changed in the middle of a run, swept over and explored.  Inside of `pr.Vmap` each member has
    its own; its masks are those of `nn.Dropout` with that probability.

    Attributes:
        p: the base value, in [0, 1].

    >>> import purerun as pr
    >>> net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 1))
    >>> step = pr.TrainStep(net, lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1), engine="func")
    >>> sweep = pr.wrap(step, Dropout(0.1), pr.Vmap(3, hyper={"dropout": [0.0, 0.3, 0.9]}))
    >>> sweep(sweep.init(seed=0), torch.ones(4, 2))["hyper", "dropout"].tolist()
    [0.0, 0.3, 0.9]
    """

    p: float = attrs.field(default=0.5, converter=floating, validator=number(0, 1))

    def wrapped(self, step: Step) -> Step:
        """Make the step with dropout of one probability."""
        return _Dropping(step, self)


@attrs.frozen
class _Dropping(Wrapped):
    wrapper: Dropout

    def draft(self, seed: int) -> Draft:
        draft = super().draft(seed)
        self._leaves(draft)[NAME] = torch.tensor(float(self.wrapper.p), dtype=torch.float64, device="cpu")
        return draft

    @contextmanager
    def forward(self, draft: Draft) -> Iterator[None]:
        with _Rate(self._leaves(draft)[NAME]), self.step.forward(draft):
            yield

    def read(self, draft: Draft, batch: Any, how: Pass = WHOLE) -> Grads:
        rate = partial(_Rate, self._leaves(draft)[NAME])
        return self.step.read(draft, batch, attrs.evolve(how, within=(*how.within, rate)))

    def _leaves(self, draft: Draft) -> Draft:
        return draft["hyper"][self.slot] if self.slot else draft["hyper"]


class _Rate(TorchFunctionMode):
    """A `with` block in which all dropout has one probability: float64, a scalar (perhaps of each member)."""

    def __init__(self, rate: Tensor) -> None:
        super().__init__()
        self._rate = rate

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {} if kwargs is None else kwargs
        if func not in _WATCHED:
            return func(*args, **given)
        if func in _NOISE:
            return self._dropped(func, {**dict(zip(_ARGUMENTS, args, strict=False)), **given})
        if _drops(*_REFUSED[func], args, given):
            raise ModelError(
                f"expected dropout by nn.Dropout, or Dropout1d to 3d, inside of pr.Dropout, got {func.__name__} with a "
                "probability of its own, which it cannot change; set that to 0, or leave pr.Dropout out"
            )
        return func(*args, **given)

    def _dropped(self, func: Any, given: Mapping[str, Any]) -> Tensor:
        x = given["input"]
        if not given.get("training", True):
            return x
        if not is_abstract(self._rate):
            return func(x, p=self._rate.item(), training=True, inplace=given.get("inplace", False))
        keep = 1 - self._rate
        # Who keeps nothing has zeros to divide.
        # The derivative is that at the masks which were drawn.
        return x * (_kept(_NOISE[func](x), keep.detach()) / torch.where(keep > 0, keep, 1.0).to(x))


def _features(dims: int) -> Callable[[Tensor], Tensor]:
    """Make the function that makes room for a mask which drops whole features."""

    def mask(x: Tensor) -> Tensor:
        if x.ndim != dims + 2:
            raise ModelError(
                f"expected a batch of {dims + 2} dimensions in Dropout{dims}d, got one of shape {list(x.shape)}; "
                "give each sample its features as the second dimension"
            )
        return x.new_empty([*x.shape[:2], *[1] * dims])

    return mask


_ARGUMENTS = ("input", "p", "training", "inplace")
_NOISE: dict[Any, Callable[[Tensor], Tensor]] = {
    F.dropout: torch.empty_like,
    F.dropout1d: _features(1),
    F.dropout2d: _features(2),
    F.dropout3d: _features(3),
}
Argument: TypeAlias = tuple[str, int, Any]
"""The name of an argument, its place, and what it is where it is not given."""

_ALPHA: tuple[Argument, Argument] = (("p", 1, 0.5), ("training", 2, False))
_NATIVE: tuple[Argument, Argument] = (("p", 1, 0.5), ("train", 2, True))
_RECURRENT: tuple[Argument, Argument] = (("dropout", 5, 0.0), ("train", 6, True))
_REFUSED: dict[Any, tuple[Argument, Argument]] = {
    F.alpha_dropout: _ALPHA,
    F.feature_alpha_dropout: _ALPHA,
    F.scaled_dot_product_attention: (("dropout_p", 4, 0.0), ("", -1, True)),
    F.multi_head_attention_forward: (("dropout_p", 10, 0.0), ("training", 13, True)),
    **dict.fromkeys((torch.dropout, torch.feature_dropout, torch.dropout_, torch.feature_dropout_), _NATIVE),
    **dict.fromkeys((torch.alpha_dropout, torch.feature_alpha_dropout, torch.alpha_dropout_), _NATIVE),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _RECURRENT),
}
"""Functions that drop by themselves -> their arguments that say how much, and whether they do."""


_WATCHED = frozenset({*_NOISE, *_REFUSED})


def _drops(chance: Argument, training: Argument, args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
    # A recurrent layer takes packed sequences with one argument more.
    shift = int(chance[0] == "dropout" and len(args) > 1 and isinstance(args[3], list | tuple))
    return all(
        given.get(name, args[place + shift] if 0 <= place + shift < len(args) else default)
        for name, place, default in (chance, training)
    )


@torch.library.custom_op("purerun::kept", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _kept(like: Tensor, keep: Tensor) -> Tensor:
    """Draw a mask: 1 with the probability `keep`, a scalar or one for each row, and 0 otherwise."""
    if keep.ndim:
        return torch.stack([*map(_kept, like, keep)], out=torch.empty_like(like))
    chance = keep.item()
    # As torch's dropout, which draws nothing where it has nothing to decide.
    return torch.full_like(like, chance) if chance in (0.0, 1.0) else torch.empty_like(like).bernoulli_(chance)


@_kept.register_fake
def _(like: Tensor, _keep: Tensor) -> Tensor:
    return torch.empty_like(like)


@_kept.register_vmap
def _(info: Any, in_dims: tuple[int | None, int | None], like: Tensor, keep: Tensor) -> tuple[Tensor, int]:
    """Hand all members' draws over at once; `purerun.chance` takes them apart."""
    size = info.batch_size
    first = like.expand(size, *like.shape) if in_dims[0] is None else like.movedim(in_dims[0], 0)
    rates = keep.expand(size) if in_dims[1] is None else keep.movedim(in_dims[1], 0)
    return _kept(first, rates), 0
