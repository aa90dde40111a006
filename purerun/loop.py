"""Loops: from a state and a loader to an iterator of states.

A loop goes on from whatever the state says: it seeks the loader to the state's place
in the data, so that starting a loop at a state is going on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol, Self, TypeAlias, runtime_checkable

import attrs
from torch import Tensor

from purerun import processes
from purerun.data import Position, Session, Share, Source, as_loader
from purerun.evaluate import PredictStep, ValStep
from purerun.identity import digest
from purerun.state import REPORT, Draft, State, StateError, leaves, missing, peek, release, seal
from purerun.step import Step, fit
from purerun.valid import is_whole

StepFunction: TypeAlias = Callable[[State, Any], State]


@runtime_checkable
class Hook(Protocol):
    """What a training loop asks of a hook."""

    def slots(self, state: State) -> Draft:
        """Say the slots that this hook needs, at full shape."""

    def within(self, epochs: int | None, iters: int | None) -> Self:
        """Learn where the loop ends."""

    def start(self, state: State) -> State:
        """Act before the very first iteration of a run."""

    def due(self, state: State) -> bool:
        """Say whether to act after this iteration."""

    def __call__(self, state: State) -> State:
        """Make the state after this hook."""


class EmptyLoader(ValueError):
    """A loop needed a batch and its loader had none."""


@attrs.frozen
class TrainLoop:
    """A training loop: `for state in train_loop(state, loader)`, one state an iteration.

    Attributes:
        step: a training step, or any function from state and batch to state.
        steps: all steps that share the state, where there are several: those that a function is made of, or
            the others of a phase.  They are checked at the start and finished at the end, as one that stands
            alone is.
        epochs: stop when so many epochs are finished.
        iters: stop when so many iterations are.
        hooks: functions of states, run in this order after the iterations at which they are due.
        lease: yield states that are good until the next one is taken (keep one with
            `state.hold()`); it saves the memory and the copying of a second state.

    >>> import torch, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda m, batch: m(batch[0]).mean(), pr.optim.SGD(lr=0.1))
    >>> loader = pr.Loader(pr.data.Tensors(torch.ones(10, 2)), batch_size=4)
    >>> loop = TrainLoop(step, epochs=2)
    >>> [(int(s["iter"]), int(s["epoch"]), int(s["cursor"])) for s in loop(step.init(seed=0), loader)]
    [(1, 0, 4), (2, 0, 8), (3, 1, 0), (4, 1, 4), (5, 1, 8), (6, 2, 0)]
    """

    step: Step | StepFunction
    steps: tuple[Step, ...] = attrs.field(default=(), kw_only=True, converter=tuple)
    epochs: int | None = attrs.field(default=None, kw_only=True)
    iters: int | None = attrs.field(default=None, kw_only=True)
    hooks: tuple[Hook, ...] = attrs.field(default=(), kw_only=True, converter=tuple)
    lease: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if (self.epochs is None) == (self.iters is None):
            got = "neither" if self.iters is None else "both"
            raise ValueError(f"expected a loop with either epochs=... or iters=..., got {got}")
        if not callable(self.step):
            raise TypeError(f"expected a step or a function from state and batch to state, got {self.step!r}")
        if not isinstance(self.step, Step) and any(step.turns for step in self.steps):
            raise ValueError(
                "expected steps that need not know when an epoch ends, because a function of your own calls them, got "
                "one that waits for it; let its windows cross epochs, e.g. pr.Accumulate(4, window='run')"
            )
        for hook in self.hooks:
            if not isinstance(hook, Hook):
                raise TypeError(f"expected hooks such as pr.hooks.Validate(...), got {hook!r}; subclass pr.hooks.Hook")
        limit = self.epochs if self.iters is None else self.iters
        if not is_whole(limit) or limit < 0:
            raise ValueError(f"expected epochs or iters to be a whole number of at least 0, got {limit!r}")

    def __call__(self, state: State, loader: Any) -> Generator[State, None, None]:
        """Go on from a state, to the end of the loop.

        Args:
            state: any state of this step: fresh, loaded in mid-epoch, rewound.
            loader: a `Loader`, or any iterable of batches with the weaker promise that
                `purerun.data` documents.
        """
        if not isinstance(state, State):
            raise TypeError(f"expected a State, got {type(state).__name__}; make one with step.init or pr.load")
        source = as_loader(loader)
        hooks = tuple(hook.within(self.epochs, self.iters) for hook in self.hooks)
        if self._steps():
            state = fit(state, *self._steps())
        if any(step.share is not None for step in self._steps()):
            _check_same(state)
        # At least one `replace`, so that the loop owns the state that it leases: if nobody else keeps
        # the one that was given, the first step need not copy it either.
        for slots in (source.slots(), *_apart([hook.slots(state) for hook in hooks], hooks)):
            state = state.replace(missing(slots, state))
        # Handed over, not kept in this frame: the first state would live as long as the loop.
        return self._run(state, hooks, source)

    def _steps(self) -> tuple[Step, ...]:
        return (self.step,) if isinstance(self.step, Step) and not self.steps else self.steps

    def _share(self) -> Share | None:
        """Say which shards this process reads; a function of the user's own gets batches whole."""
        return self.step.share if isinstance(self.step, Step) else None

    def _open(self, source: Source, seed: int) -> Session:
        share = self._share()
        return source.open(seed) if share is None else source.open(seed, shard=share.mine, shards=share.shards)

    def _run(self, state: State, hooks: tuple[Hook, ...], source: Source) -> Generator[State, None, None]:
        if not int(state["iter"]):
            for hook in hooks:
                state = hook.start(state)
        if self._ended(state):
            return
        with self._open(source, int(state["seed"])) as session:
            for batch, position in _batches(session, state, self.epochs):
                state = self._advanced(state, batch, position, lease=self.lease)
                last = self._ended(state)
                if last:
                    for step in self._steps():
                        state = step.finish(state)
                for hook in hooks:
                    if hook.due(state):
                        state = hook(state)
                del batch
                yield state
                if last:
                    return

    def _ended(self, state: State) -> bool:
        counter, limit = ("epoch", self.epochs) if self.iters is None else ("iter", self.iters)
        return limit is not None and peek(state)[counter].item() >= limit

    def _advanced(self, state: State, batch: Any, position: Position, *, lease: bool) -> State:
        if isinstance(self.step, Step):
            return self.step.advance(state, batch, position, lease=lease)
        after = self.step(_unreported(state), batch)
        if not isinstance(after, State):
            raise TypeError(f"expected the step function to return a State, got {type(after).__name__}")
        after = position.into(after)
        if lease:
            release(state)
        return after


def _unreported(state: State) -> State:
    """Make the same state without a report: what a step said of an earlier batch is no news of this one."""
    return seal({**peek(state), REPORT: {}})


def _check_same(state: State) -> None:
    """Refuse to train several states as one.

    Raises:
        StateError: another process begins with another one.
    """
    if processes.count() > 1:
        mine = digest(state)
        if processes.greatest(mine != processes.told(mine)):
            raise StateError(
                f"expected all {processes.count()} processes to begin with one state, got {mine[:12]} in process "
                f"{processes.rank()} and another elsewhere; make the model from one seed, or load one checkpoint"
            )


def _apart(slots: list[Draft], hooks: tuple[Hook, ...]) -> list[Draft]:
    """Refuse two hooks that would write into one slot."""
    owner: dict[tuple[str, ...], Hook] = {}
    for hook, wanted in zip(hooks, slots, strict=True):
        for path, _ in leaves(wanted):
            if path in owner:
                raise ValueError(
                    f"expected hooks with slots of their own, but two write into `{'/'.join(path)}`: {owner[path]!r} "
                    f"and {hook!r}; tell them apart, with slot='...' or prefix='...'"
                )
            owner[path] = hook
    return slots


def _batches(session: Session, state: State, epochs: int | None) -> Iterator[tuple[Any, Position]]:
    """Read on and on from where a state stands: one epoch after the other."""
    place = Position(int(state["epoch"]), int(state["cursor"]), state["stream"] if "stream" in state.names() else None)
    del state
    # A changed batch size can leave a tail that is dropped: an epoch then ends without a batch,
    # and without what hooks do after one.
    while epochs is None or place.epoch < epochs:
        position = None
        for batch, position in session.read(*place):
            yield batch, position
            del batch
        if position is None and not place.cursor:
            raise EmptyLoader(
                "expected a loader with at least one batch an epoch, got none; "
                "is the data set smaller than a batch with drop_last=True?"
            )
        place = Position(place.epoch + 1, 0, position.stream if position else place.stream)


@attrs.frozen
class ValLoop:
    """A validation loop: `scores = val_loop(state, loader)`, one scalar tensor a metric.

    >>> import torch, purerun as pr
    >>> model = torch.nn.Linear(2, 3)
    >>> state = pr.TrainStep(model, lambda m, b: m(b[0]).mean(), pr.optim.SGD()).init(seed=0)
    >>> data = pr.data.Tensors(torch.ones(10, 2), torch.zeros(10, dtype=torch.int64))
    >>> val_loop = ValLoop(pr.ValStep(model, metrics={"accuracy": pr.metrics.Accuracy()}))
    >>> sorted(val_loop(state, pr.Loader(data, batch_size=4)))
    ['accuracy']
    """

    # Its other name begins with "Test": pytest would take it for a test class.
    __test__ = False

    step: ValStep = attrs.field(validator=attrs.validators.instance_of(ValStep))

    def __call__(self, state: State, loader: Any) -> dict[str, Tensor]:
        """Judge a state on all batches of a loader."""
        tallies = self.step.init()
        with as_loader(loader).open(int(state["seed"])) as session:
            for batch, _ in session.read(0, 0):
                tallies = self.step(state, tallies, batch)
        return self.step.compute(tallies)


TestLoop = ValLoop
"""A test is a validation on other data."""


@attrs.frozen
class PredictLoop:
    """A prediction loop: an iterator of outputs, one a batch.

    >>> import torch, purerun as pr
    >>> model = torch.nn.Linear(2, 3)
    >>> state = pr.TrainStep(model, lambda m, b: m(b[0]).mean(), pr.optim.SGD()).init(seed=0)
    >>> loader = pr.Loader(pr.data.Tensors(torch.ones(10, 2)), batch_size=4)
    >>> [len(output) for output in PredictLoop(pr.PredictStep(model))(state, loader)]
    [4, 4, 2]
    """

    step: PredictStep

    def __call__(self, state: State, loader: Any) -> Iterator[Any]:
        """Run the model of a state on all batches of a loader."""
        with as_loader(loader).open(int(state["seed"])) as session:
            for batch, _ in session.read(0, 0):
                yield self.step(state, batch)
