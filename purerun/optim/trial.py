"""What a torch optimizer needs and remembers, found by trying it on stand-ins.

A trial never sees the values of a run: it depends on the optimizer's options and the shapes
of the parameters only, so that its result is the same in every process.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs
import torch
from torch import Tensor

from purerun.identity import describe
from purerun.optim.cells import ABSENT, Cell, Constant, Unkeepable
from purerun.optim.knobs import Knob, knobs, turned
from purerun.optim.look import merged, roomy, seen, settled
from purerun.optim.optimizer import Bucket, Params
from purerun.optim.proxy import Memory, Proxy, changes
from purerun.random import Key, keyed_everywhere

Mode: TypeAlias = Literal["dense", "sparse", "closure"]
"""What an optimizer's step wants: gradients, sparse gradients, or a closure."""
Feed: TypeAlias = Callable[[Params], tuple[Tensor, dict[str, Tensor]]]
"""A loss and its gradients at given parameters."""


@attrs.frozen
class Facts:
    """What holds for an optimizer whatever its parameters are.

    Attributes:
        mode: what its step wants.
        knobs: its hyper-parameters.
    """

    mode: Mode
    knobs: tuple[Knob, ...]


def facts(cls: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> Facts:
    """Find out what an optimizer's step wants, and what its hyper-parameters are.

    >>> facts(torch.optim.LBFGS, {}).mode
    'closure'

    Raises:
        TypeError, ValueError: the optimizer refuses its options.
    """
    demanded = inspect.signature(cls.step).parameters.get("closure")
    modes: tuple[Mode, ...] = ("dense", "sparse", "closure")
    if demanded is not None and demanded.default is inspect.Parameter.empty:
        modes = ("closure",)
    for shape in ((2, 2), (2,)):
        for mode in modes:
            changed = _tried(cls, options, shape, mode)
            if changed is not None:
                return Facts(mode, knobs(_made(cls, options, shape).defaults, frozenset(changed)))
    return Facts(modes[0], knobs(_made(cls, options, (2, 2)).defaults))


def memory(
    cls: type[torch.optim.Optimizer], options: Mapping[str, Any], known: Facts, params: Params, capacity: int | None
) -> Memory:
    """Find out what an optimizer remembers about parameters of these shapes, dtypes and devices.

    Args:
        cls: the optimizer's class.
        options: its keyword arguments.
        known: its facts.
        params: parameters; their values are not read.
        capacity: how long a list that grows may become.

    Raises:
        Unkeepable: it remembers something that tensors of constant shape cannot hold, or
            something that is neither in its state nor in its parameter groups.
    """
    params = {name: _pattern(param, 0) for name, param in params.items()}
    trial = functools.partial(_Trial, cls, options, known, params)
    runs = [trial(feeds) for feeds in _SCENARIOS[known.mode]]
    found = _joined(params, [sample for run in runs for sample in run.watched()], capacity)
    for run in runs:
        run.check(found)
    return found


@attrs.frozen
class _Sample:
    entries: dict[str, dict[str, Cell]]
    groups: dict[str, Cell]
    changed: set[str]


@attrs.define
class _Trial:
    """A few steps of an optimizer on made-up losses, once as it is and once purely."""

    cls: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    known: Facts
    params: Params
    feeds: Sequence[Feed]
    path: list[dict[str, str]] = attrs.field(factory=list)

    def watched(self) -> Iterator[_Sample]:
        """Run the optimizer as it is; say after each step what it remembers."""
        params = _cloned(self.params)
        with keyed_everywhere(Key.of(0, "trial")):
            proxy = self.proxy(params)
            (group,) = proxy.optimizer.param_groups
            # As floats from the start, since that is how they come back from the state.
            group.update(turned(self.known.knobs, proxy.optimizer.defaults, self.base()))
            for feed in self.feeds:
                before = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
                proxy.lend(params, self.grads(feed, params))
                proxy.step(feed if self.known.mode == "closure" else None)
                sample = _Sample(
                    {name: _described(entries) for name, entries in proxy.remembered().items()},
                    _described({key: group[key] for key in before | group.keys() if key != "params"}, strict=False),
                    changes(before, group),
                )
                state = dict(proxy.optimizer.state)
                proxy.settle(params)
                proxy.optimizer.state.update(state)
                self.path.append(_hashed(params))
                yield sample

    def check(self, found: Memory) -> None:
        """Run it purely, with a new optimizer at each step; it must go the same way."""
        params, slots = _cloned(self.params), found.blank()
        buckets = [Bucket(tuple(params), self.base())]
        with keyed_everywhere(Key.of(0, "trial")):
            for feed, expected in zip(self.feeds, self.path, strict=True):
                closure = feed if self.known.mode == "closure" else None
                self.proxy(params).advance(found, params, self.grads(feed, params), slots, buckets, closure)
                wrong = [name for name, text in _hashed(params).items() if text != expected[name]]
                if wrong:
                    raise Unkeepable(
                        f"expected {self.cls.__name__} to keep all that it remembers in its state and its parameter "
                        f"groups, but a new one that is given both moves {wrong[:3]} differently; does it count or "
                        "cache in attributes of its own?"
                    )

    def base(self) -> dict[str, float]:
        """List the hyper-parameters."""
        return {knob.name: knob.base for knob in self.known.knobs}

    def proxy(self, params: Params) -> Proxy:
        """Make the optimizer."""
        return Proxy(self.cls, self.options, self.known.knobs, [tuple(params)], params)

    def grads(self, feed: Feed, params: Params) -> dict[str, Tensor]:
        """Compute gradients of the layout that the optimizer wants."""
        grads = feed(params)[1]
        return {name: grad.to_sparse(1) for name, grad in grads.items()} if self.known.mode == "sparse" else grads


def _tried(
    cls: type[torch.optim.Optimizer], options: Mapping[str, Any], shape: tuple[int, ...], mode: Mode
) -> set[str] | None:
    """Return which entries of a group three steps change; None if it cannot do them."""
    _made(cls, options, shape)  # what it says about its options is said before anything is tried
    trial = _Trial(cls, options, Facts(mode, ()), {"w": _pattern(torch.zeros(shape), 0)}, _SCENARIOS[mode][0][:3])
    try:
        return {key for sample in trial.watched() for key in sample.changed}
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError):
        return None


def _made(
    cls: type[torch.optim.Optimizer], options: Mapping[str, Any], shape: tuple[int, ...]
) -> torch.optim.Optimizer:
    return cls([torch.nn.Parameter(torch.zeros(shape))], **options)


def _joined(params: Params, samples: Sequence[_Sample], capacity: int | None) -> Memory:
    changed = set().union(*(sample.changed for sample in samples))
    groups = _folded([{key: cell for key, cell in sample.groups.items() if key in changed} for sample in samples])
    entries = {name: _folded([sample.entries.get(name, {}) for sample in samples]) for name in params}
    entries = {name: {key: roomy(cell, params[name]) for key, cell in cells.items()} for name, cells in entries.items()}
    return Memory(
        {name: _settled(cells, capacity, f"`{name}`") for name, cells in entries.items()},
        _settled(groups, capacity, "a group"),
    )


def _folded(found: Sequence[Mapping[str, Cell]]) -> dict[str, Cell]:
    keys = sorted({key for cells in found for key in cells})
    nothing = Constant(ABSENT)
    return {key: functools.reduce(merged, [cells.get(key, nothing) for cells in found]) for key in keys}


def _settled(cells: Mapping[str, Cell], capacity: int | None, name: str) -> dict[str, Cell]:
    done = {}
    for key, cell in cells.items():
        try:
            done[key] = settled(cell, capacity)
        except Unkeepable as error:
            raise Unkeepable(f"expected the memory {key!r} of {name} to be {error}") from None
    return done


def _described(values: Mapping[str, Any], *, strict: bool = True) -> dict[str, Cell]:
    done = {}
    for key, value in values.items():
        try:
            done[key] = seen(value)
        except Unkeepable as error:
            if strict:
                raise Unkeepable(f"expected the memory {key!r} to be {error}") from None
    return done


def _hashed(params: Params) -> dict[str, str]:
    # Hashes, because a copy of all parameters for each step would be many times the model.
    return {name: describe(param) for name, param in params.items()}


def _cloned(params: Params) -> dict[str, Tensor]:
    return {name: param.clone() for name, param in params.items()}


def _pattern(like: Tensor, turn: int) -> Tensor:
    """Make numbers that differ from element to element and from turn to turn, without any chance."""
    places = torch.arange(like.numel(), dtype=torch.float64)
    return torch.cos(places * (turn + 1) + turn).reshape(like.shape).to(like)


def _waves(turn: int) -> Feed:
    return lambda params: (torch.ones(()), {name: _pattern(param, turn) for name, param in params.items()})


def _bowl(params: Params) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute a quadratic loss, the curvature of which differs from element to element."""
    grads = {name: (param - 2) * (_pattern(param, 1).abs() + 0.5) for name, param in params.items()}
    parts = [((param - 2).conj() * grads[name]).real.sum() / 2 for name, param in params.items()]
    return torch.stack([part.double() for part in parts]).sum(), grads


def _slope(height: float) -> Feed:
    return lambda params: (torch.ones(()), {name: torch.full_like(param, height) for name, param in params.items()})


_SCENARIOS: Mapping[Mode, Sequence[Sequence[Feed]]] = {
    "dense": ([*map(_waves, range(4)), _slope(0.0)],),
    "sparse": ([*map(_waves, range(4))],),
    # A line search ends in many ways: after progress, on a plateau, in a flat place, at once.
    "closure": ([_bowl] * 4, [_slope(3.0)] * 3, [_slope(0.0), _bowl, _slope(0.0)], [_slope(1e-8)] * 2),
}
