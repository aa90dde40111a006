"""An update in float32 for parameters of 16 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor

from purerun.grad import Grads
from purerun.merge import summed
from purerun.state import Draft
from purerun.step import Step
from purerun.wrappers.wrapper import Wrapper


@attrs.frozen
class Masters(Wrapper):
    """Let what is inside move float32 masters of parameters that have 16 bits.

    Small steps would be lost in bfloat16: it keeps 8 bits of a number.  So optimizer slots, windows and
    averages inside of this wrapper are float32, and gradients go in as float32; the model, and what stands
    around the wrapper, has the 16 bits.  For a model that was made so, such as `model.bfloat16()`.

    The slot `masters` keeps what each master has beyond its parameter, `master - parameter`, which float32
    holds exactly.  So there are no two truths: whoever replaces parameters replaces the masters, to half of
    their last bit.

    >>> import purerun as pr
    >>> model = torch.nn.Linear(2, 1).bfloat16()
    >>> step = pr.TrainStep(model, lambda model, x: model(x).float().mean(), pr.optim.SGD(lr=1e-4, momentum=0.9))
    >>> step = pr.wrap(step, Masters())
    >>> state = step(step.init(), torch.ones(4, 2, dtype=torch.bfloat16))
    >>> state["params", "weight"].dtype, state["optim", "momentum_buffer", "weight"].dtype
    (torch.bfloat16, torch.float32)
    """

    @property
    def slot(self) -> str:
        """Where the masters live: what they have beyond the parameters."""
        return "masters"

    def mappable(self, step: Step) -> bool:
        """Say that this cannot be mapped over: its kernels take lists of plain tensors."""
        return False

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Begin with the parameters themselves, and make the slots inside as wide as the masters.

        Raises:
            ValueError: no trained parameter has 16 bits.
        """
        params = draft["params"]
        narrow = {name: params[name] for name in step.trained if summed(params[name].dtype) != params[name].dtype}
        if not narrow:
            raise ValueError(
                "expected a model with bfloat16 or float16 parameters, got none that is trained; make it one with "
                "model.bfloat16(), or leave Masters out and use Precision('bfloat16')"
            )
        for name, entry in draft.items():
            if isinstance(entry, dict) and name not in ("params", "buffers"):
                draft[name] = _widened(entry, narrow)
        return {
            name: torch.zeros_like(param, dtype=torch.float32, memory_format=torch.preserve_format)
            for name, param in narrow.items()
        }

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Write the inner update of the masters, and round them to the parameters."""
        rest = draft[self.slot]
        wide = dict(zip(rest, _wide([grads.grads[name] for name in rest], rest), strict=True))
        with self._masters(draft):
            step.write(draft, attrs.evolve(grads, grads={**grads.grads, **wide}))

    def close(self, step: Step, draft: Draft) -> bool:
        """Let the masters move at the end of a loop, too."""
        with self._masters(draft):
            return step.close(draft)

    @contextmanager
    def _masters(self, draft: Draft) -> Iterator[None]:
        """Put the masters in the place of their parameters."""
        rest, params = draft[self.slot], draft["params"]
        names = list(rest)
        narrow = [params[name] for name in names]
        masters = _wide(narrow, rest)
        torch._foreach_add_(masters, [*rest.values()])
        params.update(zip(names, masters, strict=True))
        yield
        moved = [params[name] for name in names]
        torch._foreach_copy_(narrow, moved)
        lost = [*rest.values()]
        torch._foreach_copy_(lost, moved)
        torch._foreach_sub_(lost, _wide(narrow, rest))
        params.update(zip(names, narrow, strict=True))


def _wide(tensors: list[Tensor], rest: Draft) -> list[Tensor]:
    wide = [torch.empty_like(each) for each in rest.values()]
    torch._foreach_copy_(wide, tensors)
    return wide


def _widened(tree: Draft, narrow: Draft) -> Draft:
    """Make float32 of what an inner slot keeps of each parameter."""
    widened: Draft = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            widened[name] = _widened(value, narrow)
        else:
            widened[name] = value.to(summed(value.dtype)) if name in narrow else value
    return widened
