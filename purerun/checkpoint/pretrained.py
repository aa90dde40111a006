"""Weights of a file as a rule of initialisation."""

from __future__ import annotations

import os
from collections.abc import Mapping

import attrs
from torch import Generator, Tensor

from purerun.checkpoint.weights import read_weights
from purerun.initial import InitialError, Rule
from purerun.optim.match import Match, Name, ParamInfo, matching


@attrs.frozen
class Pretrained(Rule):
    """Begin with the weights of a file, buffers included, after all other rules.

    What the file has and the model has not is left out, and the other way round; what both have must be
    of one shape.

    Attributes:
        path: what `pr.checkpoint.read_weights` reads.
        prefix: which part of the file: names that begin so, and a dot; "" for all.
        into: which part of the model they are for: a name, as "backbone"; "" for the whole.
        weights: which of the file's weights, as in `read_weights`.
        match: which parameters and buffers of the model, by name.

    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> step = pr.TrainStep(torch.nn.Linear(1, 1), lambda m, x: m(x).mean(), pr.optim.SGD(lr=0.1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"fc.weight": torch.full((1, 1), 7.0)}, folder + "/a.safetensors")
    ...     begun = pr.initial.begun([Pretrained(folder + "/a.safetensors", prefix="fc")], step.model, seed=0)
    >>> begun
    {'weight': tensor([[7.]])}
    """

    match: Match = attrs.field(default=Name("*"), converter=matching, kw_only=True)
    path: str = attrs.field(converter=os.fspath)
    prefix: str = attrs.field(default="", kw_only=True)
    into: str = attrs.field(default="", kw_only=True)
    weights: str = attrs.field(default="", kw_only=True)

    @property
    def last(self) -> bool:
        """After all others."""
        return True

    def draw(self, tensor: Tensor, generator: Generator) -> None:
        """Refuse: a file is no chance."""
        raise InitialError("expected a rule that draws; weights of a file are taken with `make`")

    def make(self, seed: int, infos: Mapping[str, ParamInfo], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read the file and take what fits.

        Raises:
            CheckpointError: the file cannot be read.
            InitialError: it has nothing of the model, or something of another shape.
        """
        made = {}
        for name, value in read_weights(self.path, self.weights).items():
            here = self._here(name)
            if here not in tensors or not self.match(infos.get(here, ParamInfo(here, tensors[here].shape))):
                continue
            if value.shape != tensors[here].shape:
                raise InitialError(
                    f"{self.path}: expected `{name}` of shape {list(tensors[here].shape)} for `{here}`, got "
                    f"{list(value.shape)}; leave it out with match=..., or change the model"
                )
            made[here] = value.to(tensors[here]).contiguous()
        if not made and not self.optional:
            raise InitialError(
                f"{self.path}: expected weights of this model, such as `{next(iter(tensors))}`, got none below "
                f"prefix={self.prefix!r} for into={self.into!r}; change one of them"
            )
        return made

    def _here(self, name: str) -> str | None:
        """Find what a tensor of the file is called in the model."""
        start = f"{self.prefix}." if self.prefix else ""
        if not name.startswith(start):
            return None
        own = name.removeprefix(start)
        return f"{self.into}.{own}" if self.into else own
