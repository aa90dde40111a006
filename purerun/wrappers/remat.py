"""Activation checkpointing: parts of the forward pass are run again in the backward pass instead of being kept."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import attrs
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from purerun.bind import ModelError
from purerun.grad import WHOLE, Grads, Pass
from purerun.random import again, keyed_everywhere
from purerun.state import Draft, lazy_clone
from purerun.step import Step
from purerun.valid import several
from purerun.wrappers.wrapper import Wrapped, Wrapper, innermost

Places: TypeAlias = list[tuple[dict[str, Any], str]]
"""Where a module keeps a buffer, and under which key."""
Buffers: TypeAlias = list[tuple[dict[str, Any], str, Tensor]]
"""The same, and the buffer."""


@attrs.frozen
class Remat(Wrapper):
    """Rematerialise what some modules compute: keep their inputs, and run them again in the backward pass.

    Known as activation checkpointing (Chen et al., "Training deep nets with sublinear memory cost",
    arXiv:1604.06174): less memory for about a third more time.  Gradients, chance and buffers are those of the
    step without it, bit for bit; the model is as it was when the step is over.

    Attributes:
        modules: which modules, as one or several glob patterns of names (`*` matches dots too); of nested ones
            the outermost counts.

    >>> import torch, purerun as pr
    >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 1))
    >>> step = pr.TrainStep(net, lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> pr.wrap(step, Remat("1.*"))
    Traceback (most recent call last):
    ...
    purerun.bind.ModelError: expected modules that match '1.*', got none; near it: 0.0, 0.1, 1; change the pattern
    """

    modules: tuple[str, ...] = attrs.field(converter=several, validator=attrs.validators.min_len(1))

    def check(self, step: Step) -> None:
        """Refuse modules that are not there, and an engine that cannot run a forward again.

        Raises:
            ModelError: a pattern matches no module, or one that only holds others.
            ValueError: its engine is "func", which cannot run a forward again.
        """
        if innermost(step).mappable:
            raise ValueError(
                "expected a step with engine='autograd', got one with engine='func', whose transforms cannot run a "
                "part of the forward again; change the engine, or leave Remat out"
            )
        self.chosen(step)

    def wrapped(self, step: Step) -> Step:
        """Make the step whose modules run again."""
        return _Rematerialised(step, self)

    def chosen(self, step: Step) -> list[nn.Module]:
        """Find the modules that run again.

        Raises:
            ModelError: a pattern matches none, or one that only holds others.
        """
        named = {name: inner for name, inner in step.module.named_modules() if name}
        for pattern in self.modules:
            if not any(fnmatchcase(name, pattern) for name in named):
                near = difflib.get_close_matches(pattern, named, cutoff=0.3) or list(named)[:6]
                raise ModelError(
                    f"expected modules that match {pattern!r}, got none; near it: {', '.join(sorted(near))}; "
                    "change the pattern"
                )
        matched = [name for name in named if any(fnmatchcase(name, pattern) for pattern in self.modules)]
        outer = [name for name in matched if not any(name.startswith(f"{other}.") for other in matched)]
        for name in outer:
            if isinstance(named[name], nn.ModuleList | nn.ModuleDict):
                raise ModelError(
                    f"expected modules with a forward, but `{name}` is a {type(named[name]).__name__}, which only "
                    f"holds others; say {name + '.*'!r}"
                )
        return [named[name] for name in outer]


@attrs.frozen
class _Rematerialised(Wrapped):
    wrapper: Remat
    # Found once: a step would look for them longer than a small module computes.
    _modules: dict[nn.Module, Places] = attrs.field(init=False, eq=False, repr=False)

    @_modules.default
    def _found(self) -> dict[nn.Module, Places]:
        return {module: _places(module) for module in self.wrapper.chosen(self.step)}

    def read(self, draft: Draft, batch: Any, how: Pass = WHOLE) -> Grads:
        with _rerunning(self._modules):
            return self.step.read(draft, batch, how)


@contextmanager
def _rerunning(modules: dict[nn.Module, Places]) -> Iterator[None]:
    """Let modules forget what they compute for a while, and put their own `forward` back."""
    own = [(inner.__dict__, inner.__dict__.get("forward")) for inner in modules]
    try:
        for inner, places in modules.items():
            inner.__dict__["forward"] = _forgetting(inner.forward, places)
        yield
    finally:
        for place, forward in own:
            if forward is None:
                place.pop("forward", None)
            else:
                place["forward"] = forward


def _forgetting(forward: Callable[..., Any], places: Places) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        before = [(place, key, lazy_clone(buffer)) for place, key, buffer in _buffers(places)]
        stand = keyed_everywhere.stand()  # torch's own generators are `checkpoint`'s business
        modes = _get_current_function_mode_stack()
        runs = iter([forward])

        def once_more(*args: Any, **kwargs: Any) -> Any:
            first = next(runs, None)
            if first is not None:
                return first(*args, **kwargs)
            # The second run must neither count in what buffers remember, nor see what they have learnt since.
            with _showing(places, before), again(stand), _under(modes):
                return forward(*args, **kwargs)

        return checkpoint(once_more, *args, use_reentrant=False, **kwargs)

    return run


@contextmanager
def _under(modes: list[TorchFunctionMode]) -> Iterator[None]:
    """Put back the modes of the first run: an accelerator's backward pass is in a thread that knows none of them."""
    with ExitStack() as blocks:
        for mode in modes[len(_get_current_function_mode_stack()) :]:
            blocks.enter_context(mode)
        yield


@contextmanager
def _showing(places: Places, buffers: Buffers) -> Iterator[None]:
    now = _buffers(places)
    try:
        for place, key, buffer in buffers:
            place[key] = lazy_clone(buffer)
        yield
    finally:
        for place, key, buffer in now:
            place[key] = buffer


def _places(module: nn.Module) -> Places:
    return [(inner._buffers, key) for inner in module.modules() for key in inner._buffers]


def _buffers(places: Places) -> Buffers:
    return [(place, key, buffer) for place, key in places if (buffer := place[key]) is not None]
