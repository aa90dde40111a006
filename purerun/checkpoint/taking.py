"""A state that has the weights of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from purerun import program
from purerun.checkpoint.matching import Match, WeightsDiffer, match
from purerun.checkpoint.weights import read_weights
from purerun.evaluate import averages
from purerun.naming import Naming
from purerun.state import State, leaves


def load_weights(
    state: State,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    rename: Mapping[str, str] | None = None,
    weights: str = "",
) -> tuple[State, Match]:
    r"""Make the state that has the parameters and buffers of a file, and is otherwise as it was.

    A slot that holds weights as well, as that of `pr.EMA` does, has the new ones too: an
    average begins at the weights that a run begins with.

    Args:
        state: of the model; counters, hyper-parameters and the optimizer's slots stay as they are in it.
        path: what `pr.checkpoint.read_weights` reads: a checkpoint, a run, `.safetensors`, `.pth`, ...
        strict: whether every tensor of the model must be in the file, and every one of the file in the
            model; otherwise what fits is taken, if anything does.
        rename: regular expression -> replacement, applied to each name of the file in this order and
            wherever it matches: `{r"^backbone\.": ""}`.
        weights: which weights of the file: "" for the trained ones, "ema" for an average, "ema/critic" for that of one
            of several steps.

    Returns:
        The state, and how the file fitted: `print(fit)` shows a table.

    Raises:
        CheckpointError: the file cannot be read.
        WeightsDiffer: they do not fit.

    >>> import tempfile
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, folder + "/a.pth")
    ...     state, fit = load_weights(step.init(seed=0), folder + "/a.pth")
    >>> state["params"]["weight"].tolist(), sorted(fit.taken)
    ([[1.0, 1.0]], ['bias', 'weight'])
    """
    wanted = dict([*_tensors(state, "params"), *_tensors(state, "buffers")])
    found = read_weights(path, weights)
    taken, fit = match(wanted, found, os.fspath(path), rename=rename, naming=_naming(state))
    if fit.rows and (strict or not fit.taken):
        raise WeightsDiffer(fit)
    own = {part: _known(state, part, taken) for part in ("params", "buffers")}
    state = state.replace(own)
    for path in averages(state):
        slot = tuple(path.split("/"))
        found: dict[str, Any] = {part: _known(state[slot], part, taken) for part in own}
        for name in reversed(slot):
            found = {name: found}
        state = state.replace(found)
    return state, fit


def _naming(state: State) -> Naming:
    """Say what the model's `state_dict` calls the weights, as far as the text of its step is known here."""
    if "fingerprint" not in state.names():
        return Naming()
    return Naming.told(program.recall(bytes(state["fingerprint"].tolist()).hex()) or "")


def _tensors(state: State, part: str) -> Iterator[tuple[str, Tensor]]:
    return ((name, leaf) for (name,), leaf in leaves(state[part], report=True))


def _known(state: State, part: str, taken: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: taken[name] for name in state[part].names() if name in taken}
