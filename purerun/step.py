"""One step as a pure function of state and batch: the frame that every step shares.

A step is two halves, `grad(state, batch) -> Grads` and `update(state, grads) -> State`;
calling it runs one after the other.  Beneath them, and for wrappers, stand `read` and
`write`, which pass one draft along instead of building a state at each layer.
"""

from __future__ import annotations

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from purerun import batch as _batch
from purerun import program
from purerun.batch import BatchError
from purerun.bind import is_abstract
from purerun.data.place import Position
from purerun.data.shards import Shards, Share
from purerun.grad import WHOLE, Grads, LossError, Pass
from purerun.origin import where
from purerun.random import Key, keyed
from purerun.schedule import Affine
from purerun.state import COUNTERS, REPORT, Draft, State, StateError, lazy_clone, leaves, peek, release, seal, unseal

HOST = "host"
"""An entry of the draft inside of a traced or mapped program: what the host worked out for it, see `Step.host`.

Where it is there, the generators already stand at the step's key, and counters cannot be read.
"""


class StepChanged(UserWarning):
    """A state goes on with another step than the one that made it."""


class NonFiniteLoss(ArithmeticError):
    """The loss of a batch is NaN or infinite; the state before it is whole."""


@attrs.frozen
class Step(ABC):
    """A frozen value that turns a state and a batch into the next state.

    A subclass gives `trained`, `draft`, `read`, `write` and `text`.
    """

    # ------------------------------------------------------------------ for wrappers
    @property
    @abstractmethod
    def slot(self) -> str:
        """The name under which this step keeps its own when several share a state; "" for none."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where this step works: batches go there, and states are put there."""

    @property
    @abstractmethod
    def closes(self) -> bool:
        """Whether the update asks for gradients of the same batch at other parameters."""

    @property
    @abstractmethod
    def trained(self) -> tuple[str, ...]:
        """The names of the parameters that this step moves."""

    @abstractmethod
    def draft(self, seed: int) -> Draft:
        """Make the first draft: every slot of this step at full shape."""

    @abstractmethod
    def read(self, draft: Draft, batch: Any, how: Pass = WHOLE) -> Grads:
        """Compute gradients from a draft.  Of the draft, only buffers may change."""

    @abstractmethod
    def write(self, draft: Draft, grads: Grads) -> None:
        """Write the update of parameters and slots into a draft; the gradients may be written into, too."""

    @abstractmethod
    def text(self) -> str:
        """Say the program: the text whose hash is the fingerprint."""

    def key(self, draft: Draft, how: Pass = WHOLE) -> Key:
        """Say where the chance of an iteration comes from, or that of a part of its batch."""
        return Key.of(int(draft["seed"]), "step", int(draft["iter"]), *how.part)

    def chance(self, draft: Draft, how: Pass = WHOLE) -> AbstractContextManager[None]:
        """Let torch's generators stand where the chance of an iteration comes from, for who runs a traced program."""
        return keyed(self.key(draft, how))

    def forward(self, draft: Draft) -> AbstractContextManager[Any]:
        """Make the `with` block in which wrappers run the model, for who runs it outside of `read`."""
        return nullcontext()

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The model that this step runs."""

    @property
    def mappable(self) -> bool:
        """Whether both halves can be mapped over and differentiated."""
        return False

    def host(self, draft: Draft) -> dict[str, Affine]:
        """Work out what an update asks of the counters: the maps of scheduled hyper-parameters."""
        return {}

    @property
    def share(self) -> Share | None:
        """Which shards of each global batch this process reads; None for a step that takes batches whole."""
        return None

    @property
    def turns(self) -> bool:
        """Whether this step must learn from its loop when an epoch ends."""
        return False

    def note(self, draft: Draft, grads: Grads) -> None:
        """Report and remember, whether or not this iteration updates, so that reports keep their names."""

    def settled(self, draft: Draft, grads: Grads) -> bool:
        """Say whether a pass stands.  If not, it is made again from the draft, in which a wrapper has changed its slot.

        All processes that share a batch must say the same, so only what has been merged may decide.
        """
        return True

    def vet(self, draft: Draft, grads: Grads) -> None:
        """Refuse gradients that must not be written, before anything is."""

    def close(self, draft: Draft) -> bool:
        """Write what is still open at the end of a loop; say whether there was anything."""
        return False

    # ------------------------------------------------------------------ for everybody
    def init(self, seed: int = 0) -> State:
        """Make the first state, from the model's own weights.

        Args:
            seed: where all chance of the run comes from; 0 <= seed < 2**63.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"expected a seed with 0 <= seed < 2**63, got {seed!r}")
        return seal(self.draft(seed))

    def grad(self, state: State, batch: Any) -> Grads:
        """Compute the gradients of a batch; the first half of a step."""
        return self._read(unseal(state), state, batch)

    def update(self, state: State, grads: Grads) -> State:
        """Make the state after these gradients; the second half of a step.

        Raises:
            StateError: the gradients do not fit the parameters.
        """
        draft = self._open(state)
        _check_grads(draft["params"], grads, self.trained)
        # The gradients may be used again, and no tensor belongs to two states.
        own = {name: lazy_clone(buffer) for name, buffer in grads.buffers.items()}
        report = {name: lazy_clone(value) for name, value in grads.metrics.items()}
        written = {name: lazy_clone(grad) for name, grad in grads.grads.items()}
        kept = {slot: {name: lazy_clone(leaf) for name, leaf in tree.items()} for slot, tree in grads.kept.items()}
        self._write(draft, attrs.evolve(grads, grads=written, buffers=own, metrics=report, kept=kept))
        return seal(draft)

    def __call__(self, state: State, batch: Any) -> State:
        """Make the state after one batch: `update(state, grad(state, batch))`."""
        draft = self._open(state)
        self._write(draft, self._read(draft, state, batch))
        return seal(draft)

    def advance(self, state: State, batch: Any, position: Position, *, lease: bool = False) -> State:
        """Step as a loop does: with the new place in the data, and perhaps with a leased state.

        Args:
            state: where to step from.
            batch: what to step on.
            position: where the run stands in its data after this batch.
            lease: empty `state` once the gradients are in hand, so that the update need
                not copy.  Until then, and so after an error in the batch or the loss, the
                state is whole.
        """
        draft = self._open(state, lease=lease)
        grads = self._read(draft, state, batch)
        if not position.cursor and position.epoch > draft["epoch"].item():
            grads = attrs.evolve(grads, last=True)
        if lease:
            release(state)
        try:
            self._write(draft, grads)
        except Exception as error:
            if lease:
                error.add_note("the state was leased and is lost with this update; go on from the last checkpoint")
            raise
        draft["epoch"], draft["cursor"] = _moved_to(draft["epoch"], position.epoch), _count(position.cursor)
        if position.stream is not None:
            draft["stream"] = position.stream
        return seal(draft)

    def finish(self, state: State) -> State:
        """Make the state after the last iteration of a loop: windows that are part full are applied."""
        draft = unseal(state)
        after = {name: draft[name] for name in COUNTERS}
        # What is still open belongs to the iteration that has just been counted, and moves by
        # the hyper-parameters of that one.
        ended = not int(after["cursor"]) and int(after["epoch"]) > 0
        draft["iter"] = _count(max(int(after["iter"]) - 1, 0))
        draft["epoch"] = _count(int(after["epoch"]) - ended)
        if not self.close(draft):
            return state
        report = {name: lazy_clone(value) for name, value in state["metrics"].items()}
        return seal({**draft, **after, "metrics": {**report, **draft["metrics"]}})

    def fingerprint(self) -> Tensor:
        """Hash the program's text: uint8, shape [32]."""
        return program.fingerprint(self.text())

    def adopt(self, state: State) -> State:
        """Make a state of another step fit this one.

        What both have in the same shape is kept; slots that this step needs and the state
        lacks start fresh; slots of the other optimizer are dropped.  The base hyper-parameters
        are this step's own.  Entries that no step has (of hooks, of loaders) stay.

        Raises:
            StateError: the parameters themselves are others.
        """
        return adopt(state, self)

    # ------------------------------------------------------------------ inside
    def _open(self, state: State, *, lease: bool = False) -> Draft:
        draft = unseal(state, lease=lease)
        if self.slot:
            # Steps that take turns: what the others have reported stays beside this one's report.
            mine = f"{self.slot}."
            others = {name: value for name, value in peek(state)[REPORT].items() if not name.startswith(mine)}
            draft[REPORT] = {name: lazy_clone(value) for name, value in others.items()}
        return draft

    def _read(self, draft: Draft, state: State, batch: Any) -> Grads:
        try:
            grads = self.read(draft, batch)
            while not self.settled(draft, grads):
                del grads  # or they would stay while the next ones are computed
                grads = self.read(draft, batch)
        except Exception as error:
            _explain(error, self, state, batch)
            raise
        self.vet(draft, grads)
        return grads

    def _write(self, draft: Draft, grads: Grads) -> None:
        draft["buffers"].update(grads.buffers)
        try:
            self.write(draft, grads)
        except KeyError:
            _check(draft, self)
            raise
        self.note(draft, grads)
        mine = {f"{self.slot}.{name}": value for name, value in grads.metrics.items()} if self.slot else grads.metrics
        if not draft[REPORT].keys().isdisjoint(mine):
            raise LossError(
                "expected terms of the loss with other names than what the step itself reports, got "
                f"{sorted(draft[REPORT].keys() & mine.keys())}; call them something else"
            )
        draft[REPORT].update(mine)
        draft["iter"] = _count(int(draft["iter"]) + 1)


def init(seed: int, *steps: Step) -> State:
    """Make one state for several steps that share it: the union of their slots.

    Raises:
        StateError: two steps want different things under one name; give them names.
    """
    union: Draft = {}
    if len(steps) > 1 and any(not step.slot for step in steps):
        raise StateError("expected a name for each of several steps that share a state: TrainStep(..., name='critic')")
    for step in steps:
        _join(union, step.draft(seed), ())
    union["fingerprint"] = program.fingerprint(text(*steps))
    return seal(union)


def adopt(state: State, *steps: Step) -> State:
    """Make a state of other steps fit these, which share it; see `Step.adopt`.

    Raises:
        StateError: the parameters themselves are others.
    """
    fresh, old = init(int(state["seed"]), *steps), dict(leaves(state))
    for path, leaf in leaves(fresh):
        if path[0] in ("params", "buffers") and not _alike(leaf, old.get(path)):
            raise StateError(f"expected a state with {_say(path, leaf)}, got {_say(path, old.get(path))}")
    kept: Draft = {}
    for path, leaf in leaves(fresh):
        # The hyper-parameters are this step's: that is what another step is mostly wanted for.
        usable = path[0] not in ("fingerprint", "hyper") and _alike(leaf, old.get(path))
        _put(kept, path, old[path] if usable else leaf)
    others = [name for name in state.names() if name not in fresh.names()]
    return fresh.replace(kept).replace(state.select("scores", *others))


def fit(state: State, *steps: Step) -> State:
    """Make a state one that these steps can go on from, and say so when others made it.

    Raises:
        StateError: a slot is missing or has another shape; `step.adopt` is the remedy.
    """
    now = text(*steps)
    mark = program.fingerprint(now)
    if "fingerprint" in state.names() and torch.equal(mark, state["fingerprint"]):
        return _placed(state, steps)
    _check(state, *steps)
    what = program.difference(state["fingerprint"], now) + _kept_hyper(state, steps)
    warnings.warn(StepChanged("this state was made by another step:\n" + what), stacklevel=4)
    return _placed(state.replace(fingerprint=mark), steps)


def _placed(state: State, steps: tuple[Step, ...]) -> State:
    """Put a state that was loaded, or made on another device, where its steps work."""
    params = state["params"]
    if all(params[step.trained[0]].device == step.device for step in steps):
        return state
    draft = unseal(state)
    for path, leaf in leaves(init(int(state["seed"]), *steps)):
        tree = draft
        for name in path[:-1]:
            tree = tree[name]
        tree[path[-1]] = tree[path[-1]].to(leaf.device)
    return seal(draft)


def _kept_hyper(state: State, steps: tuple[Step, ...]) -> str:
    """Say which hyper-parameters of a state are not what the steps that go on with it would begin with."""
    fresh = dict(leaves(init(0, *steps)["hyper"]))
    kept = {path: leaf for path, leaf in leaves(state["hyper"]) if not _equal(leaf, fresh.get(path))}
    if not kept:
        return ""
    told = [
        f"{'/'.join(path)} is {leaf.tolist()}, "
        + (f"not {fresh[path].tolist()}" if path in fresh else "and nobody reads it")
        for path, leaf in kept.items()
    ]
    return (
        f"\nThe hyper-parameters of the state stay: {', '.join(told)}. "
        "Take the new ones with `state = step.adopt(state)`, or set them with `state.replace(hyper={...})`."
    )


def _equal(leaf: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(leaf, other)


def _check_grads(params: Mapping[str, Tensor], grads: Grads, trained: tuple[str, ...]) -> None:
    if set(grads.grads) != set(trained):
        odd = sorted(set(grads.grads) ^ set(trained))[:4]
        raise StateError(f"expected a gradient for each trained parameter and no other, but {odd} are not in both")
    for name in trained:
        if not _alike(params[name], grads.grads[name]) or params[name].device != grads.grads[name].device:
            like, got = _say((name,), params[name]), _say((name,), grads.grads[name])
            raise StateError(f"expected a gradient like {like}, got {got}")


def _check(state: State | Draft, *steps: Step) -> None:
    have = dict(leaves(state))
    if ("seed",) not in have:
        raise StateError(f"expected a state made by step.init(seed), got one with the entries {sorted(state.keys())}")
    for path, leaf in leaves(init(int(state["seed"]), *steps)):
        if not _alike(leaf, have.get(path)):
            raise StateError(
                f"expected a state with {_say(path, leaf)}, got {_say(path, have.get(path))}; "
                "if another step made it on purpose, use `state = step.adopt(state)`"
            )


def text(*steps: Step) -> str:
    """Say the program of steps that share a state; in whatever order they are given, it is the same one."""
    return "\n".join(step.text() for step in sorted(steps, key=lambda step: step.slot))


def _explain(error: Exception, step: Step, state: State, batch: Any) -> None:
    """Say what the batch and the state were when a read failed.

    Raises:
        StateError: the cause is a state without the step's slots.
        BatchError: the cause is a batch without the key that the loss asked for.
    """
    if isinstance(batch, Shards) and batch.parts:
        batch = batch.parts[0]
    if isinstance(error, KeyError):
        _check(state, step)
        wanted = error.args[0] if error.args else None
        if isinstance(batch, Mapping) and wanted not in batch:
            raise BatchError(
                f"expected a batch with the key {wanted!r}, which the loss asks for, got {_batch.describe(batch)}"
            ) from error
    if _is_about_shapes(error):
        _check(state, step)
        raise BatchError(
            f"expected a batch that the model and the loss can take, got {_batch.describe(batch)}, "
            f"on which they failed in iteration {int(state['iter'])}, {where(error)}: {str(error).splitlines()[0]}; "
            "look at shapes and dtypes"
        ) from error
    error.add_note(f"in iteration {int(state['iter'])}, on a batch of {_batch.describe(batch)}")


_SHAPES = re.compile(
    r"shape|size|dimension|dtype|type .* but|must match|channels|out of range|must be Tensor|Index|index"
)


def _is_about_shapes(error: Exception) -> bool:
    """Say whether torch refused the shapes or dtypes that it was given."""
    return type(error) in (RuntimeError, TypeError, ValueError, IndexError) and bool(_SHAPES.search(str(error)))


def refuse_nonfinite(grads: Grads) -> None:
    """Raise if the loss of a batch is NaN or infinite.

    Only where looking costs nothing: on an accelerator it would wait for the device at each
    step, so there the log looks when it reads the values anyway.
    """
    loss = grads.metrics["loss"]
    if loss.device.type != "cpu" or is_abstract(loss) or math.isfinite(loss.item()):
        return
    bad = ", ".join(f"{name}={value.item()}" for name, value in grads.metrics.items() if not value.isfinite().all())
    raise NonFiniteLoss(
        f"expected a finite loss, got {bad}; nothing was written. "
        "Lower the learning rate, clip the gradients, look at this batch, or allow it with nonfinite='allow'"
    )


_CPU = torch.device("cpu")  # said outright: the user may have set another default


def _moved_to(epoch: Tensor, value: int) -> Tensor:
    # Most batches end no epoch, and a lazy clone is cheaper than a new tensor.
    return lazy_clone(epoch) if epoch.item() == value else _count(value)


def _count(value: int) -> Tensor:
    return torch.scalar_tensor(value, dtype=torch.int64, device=_CPU)


def _alike(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and a.dtype == b.dtype


def _say(path: tuple[str, ...], leaf: Tensor | None) -> str:
    where = "/".join(path)
    return f"no `{where}`" if leaf is None else f"`{where}` of {str(leaf.dtype)[6:]} {list(leaf.shape)}"


def _put(tree: Draft, path: tuple[str, ...], leaf: Tensor) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def _join(union: Draft, draft: Draft, path: tuple[str, ...]) -> None:
    shared = {("epoch",), ("iter",), ("cursor",), ("seed",), ("seeds",), ("fingerprint",)}
    for name, value in draft.items():
        where = (*path, name)
        if isinstance(value, dict):
            _join(union.setdefault(name, {}), value, where)
        elif name not in union or where in shared:
            union.setdefault(name, value)
        elif path[:1] in (("params",), ("buffers",)):
            if not _alike(union[name], value) or not torch.equal(union[name], value):
                raise StateError(
                    f"two steps have different `{'/'.join(where)}`; put their modules into one "
                    "(nn.ModuleDict), and choose with TrainStep(..., params='critic.*')"
                )
        else:
            raise StateError(f"two steps want `{'/'.join(where)}`; name them: TrainStep(..., name='critic')")
