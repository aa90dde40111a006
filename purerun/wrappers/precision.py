"""Half precision: the loss computed under autocast, and scaled where its gradients would vanish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Literal

import attrs
import torch

from purerun.grad import Grads, Pass
from purerun.state import Draft, lazy_clone
from purerun.step import NonFiniteLoss, Step
from purerun.valid import above, between, floating, one_of, refuse, whole
from purerun.wrappers import streak
from purerun.wrappers.finite import held_back, nonfinite, unscale, write_unless
from purerun.wrappers.wrapper import Wrapper


def _scale(owner: Precision, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None or value == "auto":
        return
    if owner.dtype == "bfloat16":
        raise refuse(owner, "scale", "left out, because bfloat16 has the range of float32 and nothing vanishes", value)
    if value != "dynamic":
        above(0)(owner, attribute, value)


@attrs.frozen
class Precision(Wrapper):
    """Compute the loss under `torch.autocast`, and with float16 multiply it by a scale.

    Parameters, gradients and optimizer slots stay in float32.  Gradients are divided by the scale as soon
    as they are there, so whatever stands around this sees them as they are.  Where they are not finite, the
    update is left out and the scale goes down, as `torch.amp.GradScaler` does it, bit for bit; a loss that
    is not finite is such a case too, not an error, and leaves the buffers as they were.

    The scale is kept in the slot `precision` and reported as `loss_scale`, as it will be for the next update, with
    the updates left out as `skipped` and `skipped_in_a_row`.  It changes once an update of what stands around this,
    so a window of `Accumulate` has one scale.

    The loss function may ask for another dtype by an autocast of its own.  To judge under the same
    autocast: `ValStep(..., precision=...)`.

    Attributes:
        dtype: "bfloat16" or "float16".
        scale: "dynamic", a number that it stays at, or None for none; "auto" is dynamic for float16.  There is none
            for bfloat16.
        init_scale: what a dynamic scale begins at.
        growth_factor: what it is multiplied by after `growth_interval` finite updates in a row.
        backoff_factor: what it is multiplied by where gradients are not finite.
        growth_interval: see above.
        limit: with a scale, so many updates left out in a row are an error, before anything is written: no scale
            is small enough for them.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).float().mean(), pr.optim.SGD(lr=0.1))
    >>> step = pr.wrap(step, Precision("float16"))
    >>> state = step(step.init(), torch.ones(4, 2))
    >>> state["params", "weight"].dtype, float(state["precision", "scale"])  # too large a scale, at first
    (torch.float32, 32768.0)
    """

    dtype: Literal["bfloat16", "float16"] = attrs.field(default="bfloat16", validator=one_of("bfloat16", "float16"))
    scale: Literal["auto", "dynamic"] | float | None = attrs.field(
        default="auto", kw_only=True, converter=floating, validator=_scale
    )
    init_scale: float = attrs.field(default=2.0**16, kw_only=True, validator=above(0), converter=floating)
    growth_factor: float = attrs.field(default=2.0, kw_only=True, validator=above(1), converter=floating)
    backoff_factor: float = attrs.field(default=0.5, kw_only=True, validator=between(0, 1), converter=floating)
    growth_interval: int = attrs.field(default=2000, kw_only=True, validator=whole(1))
    limit: int = attrs.field(default=50, kw_only=True, validator=whole(1))

    @property
    def kind(self) -> str:
        """With a scale it is another kind: it decides about updates."""
        return "Precision" if self._scaling is None else "Precision with a scale"

    @property
    def slot(self) -> str:
        """Where the scale lives, if there is one."""
        return "" if self._scaling is None else "precision"

    def mappable(self, step: Step) -> bool:
        """Say whether this can be mapped over: the kernels of a scale take plain tensors."""
        return self._scaling is None and step.mappable

    def memory(self, step: Step, draft: Draft) -> Draft:
        """Begin with the first scale.

        Raises:
            ValueError: parameters have 16 bits themselves.
        """
        if self._scaling is None:
            return {}
        narrow = [name for name in step.trained if draft["params"][name].dtype == torch.float16]
        if narrow:
            raise ValueError(
                f"expected float32 parameters under a loss scale, got float16 in {narrow[:4]}: their gradients would "
                "vanish when they are divided by it; keep the model in float32, the autocast makes its copies"
            )
        first = self.init_scale if self._scaling == "dynamic" else float(self._scaling)
        return {
            **streak.none(step.device),
            "scale": torch.full((), first, dtype=torch.float32, device=step.device),
            "growth_tracker": torch.zeros((), dtype=torch.int32, device=step.device),
        }

    def around(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make the autocast, for a `with` block.

        >>> with Precision("bfloat16").around(torch.device("cpu")):
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.bfloat16
        """
        return torch.autocast(device.type, self._dtype)

    @contextmanager
    def forward(self, step: Step, draft: Draft) -> Iterator[None]:
        """Run the model under autocast."""
        with step.forward(draft), self.around(step.device):
            yield

    def read(self, step: Step, draft: Draft, batch: Any, how: Pass) -> Grads:
        """Read under autocast, with the loss scaled and the gradients not."""
        how = attrs.evolve(how, autocast=self._dtype)
        if self._scaling is None:
            return step.read(draft, batch, how)
        scale = draft[self.slot]["scale"]
        # What a forward pass has written into buffers is good, but for one that is not finite itself.
        before = {name: lazy_clone(buffer) for name, buffer in draft["buffers"].items()}
        # A product or a clone: a gradient may be this very tensor.
        scaled = scale.clone() if how.scale is None else scale * how.scale
        grads = step.read(draft, batch, attrs.evolve(how, scale=scaled))
        # By way of float64, as GradScaler does it.
        fine = attrs.evolve(grads, grads=unscale(grads.grads, scale.double().reciprocal().float()))
        if before:
            bad = ~grads.metrics["loss"].isfinite()
            fine = held_back(bad, step, {**draft, "buffers": before}, fine)
        return streak.marked(fine)

    def vet(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Let an overflow pass, for the scale to go down, unless there were too many.

        Raises:
            NonFiniteLoss: there were.
        """
        if self._scaling is None:
            step.vet(draft, grads)
            return
        streak.refuse(draft[self.slot], draft["iter"], grads, self.limit, _REMEDY)
        with suppress(NonFiniteLoss):
            step.vet(draft, grads)

    def write(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Write the inner update, or leave it out; and change the scale."""
        if self._scaling is None:
            step.write(draft, grads)
            return
        bad = nonfinite(grads.grads)
        write_unless(bad, step, draft, grads)
        streak.count(draft[self.slot], bad, self.limit)
        if self._scaling == "dynamic":
            own, found = draft[self.slot], bad.to(torch.float32)
            factors = self.growth_factor, self.backoff_factor, self.growth_interval
            torch._amp_update_scale_(own["scale"], own["growth_tracker"], found, *factors)

    def note(self, step: Step, draft: Draft, grads: Grads) -> None:
        """Report the scale, and how many updates were left out."""
        step.note(draft, grads)
        if self.slot:
            streak.report(step, draft, self.slot)
            name = f"{step.slot}.loss_scale" if step.slot else "loss_scale"
            draft["metrics"][name] = lazy_clone(draft[self.slot]["scale"])

    @property
    def _scaling(self) -> Literal["dynamic"] | float | None:
        """How the loss is scaled: with "auto" as the dtype needs it."""
        if self.scale != "auto":
            return self.scale
        return "dynamic" if self.dtype == "float16" else None

    @property
    def _dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]


_REMEDY = (
    "No loss scale can help here: lower the learning rate, look at these batches, compute what overflows in float32, "
    "or allow more with Precision(limit=...)"
)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
