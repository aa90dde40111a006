"""One step for a whole population: many seeds, or many settings of hyper-parameters, in one program."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from purerun.bind import is_abstract
from purerun.chance import Streams, draws
from purerun.grad import WHOLE, Grads, Pass
from purerun.mapping import SweepError, mapped
from purerun.optim.fixed import Fixed
from purerun.optim.memo import Memo
from purerun.population import SEEDS, SHARED, members, stacked
from purerun.random import keyed, keyed_everywhere
from purerun.state import REPORT, Draft, StateError, leaves
from purerun.step import HOST, Step
from purerun.valid import is_number, one_of, whole
from purerun.wrappers.wrapper import Wrapped, Wrapper

Settings = Mapping[str, tuple[float, ...]]


def _settings(given: Mapping[str, Sequence[float] | Tensor]) -> Fixed[tuple[float, ...]]:
    return Fixed({name: _numbers(name, values) for name, values in given.items()})


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    found = values.tolist() if isinstance(values, Tensor) else values
    if not isinstance(found, list | tuple | range) or not all(map(is_number, found)):
        raise ValueError(f"expected a list of numbers for {name!r} of Vmap, one for each member, got {values!r}")
    return tuple(map(float, found))


def _one_each(sweep: Vmap, attribute: Any, hyper: Settings) -> None:
    for name, values in hyper.items():
        if len(values) != sweep.members:
            raise ValueError(
                f"expected a value of {name!r} for each of {sweep.members} members, got {len(values)}; give as many as "
                "Vmap has members"
            )


class SameMembers(UserWarning):
    """All members of a sweep do the same."""


@attrs.frozen
class Vmap(Wrapper):
    """Train a population by one step: each operation runs once for all members.

    The state is batched: each of its leaves has a dimension more, the first.  `pr.unstack(state)` gives the
    members as ordinary states, which the inner step goes on from, and `pr.stack(states)` puts states together.
    The step that stands inside must have `engine="func"`.  All members read the same batches.

    What a member does is what it does alone, chance included: dropout masks are those of its own seed.  Its
    numbers are those of its solo run up to rounding, since some kernels sum in another order for many than
    for one.  A member whose loss is not finite stops nobody else.

    Attributes:
        members: how many.
        hyper: hyper-parameters that `init` begins with, by name, one value for each member; the others are the step's
            own.  A state that goes on keeps those that it has: `state.replace(hyper=...)` changes them.
        seeds: "own": with `init(seed)` the members have the seeds `seed`, `seed + 1`, ...; "common": all have
            `seed`, and differ by their hyper-parameters alone.

    >>> import purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda m, x: m(x).mean(), pr.optim.SGD(lr=0.1), engine="func")
    >>> sweep = pr.wrap(step, Vmap(3, hyper={"lr": [0.1, 0.01, 0.001]}))
    >>> state = sweep(sweep.init(seed=0), torch.ones(4, 2))
    >>> state["params", "weight"].shape, state["metrics", "lr"].tolist(), int(state["iter"])
    (torch.Size([3, 1, 2]), [0.1, 0.01, 0.001], 1)
    """

    members: int = attrs.field(validator=whole(1))
    hyper: Settings = attrs.field(factory=lambda: Fixed({}), kw_only=True, converter=_settings, validator=_one_each)
    seeds: Literal["own", "common"] = attrs.field(default="own", kw_only=True, validator=one_of("own", "common"))

    def check(self, step: Step) -> None:
        """Refuse a step that cannot be mapped.

        Raises:
            ValueError: it cannot.
        """
        if not step.mappable:
            raise ValueError(
                "expected a step that can be mapped over members, got one with engine='autograd'; make it with "
                "TrainStep(..., engine='func')"
            )

    def wrapped(self, step: Step) -> Step:
        """Make the sweep."""
        return Swept(step, self)


@attrs.frozen
class Swept(Wrapped):
    """A step with `Vmap` around it."""

    wrapper: Vmap
    _memo: Memo = attrs.field(init=False, eq=False, repr=False, factory=Memo)

    @property
    def mappable(self) -> bool:
        """Not once more."""
        return False

    def draft(self, seed: int) -> Draft:
        """Make the first draft of the population."""
        count = self.wrapper.members
        if seed + count > 2**63:
            raise ValueError(f"expected a seed that leaves room for those of {count} members, got {seed}")
        seeds = [seed + place if self.wrapper.seeds == "own" else seed for place in range(count)]
        draft = stacked([self.step.draft(each) for each in seeds], like={})
        _set(draft["hyper"][self.slot] if self.slot else draft["hyper"], self.wrapper.hyper)
        return draft

    def read(self, draft: Draft, batch: Any, how: Pass = WHOLE) -> Grads:
        """Compute the gradients of all members, each under the chance of its own seed."""
        self._fits(draft)
        if HOST in draft:
            return self._read_all(draft, batch, how)
        if "drew" not in self._memo:
            self._look(draft, batch, how)
        with self.chance(draft, how):
            grads, drew = draws(self.device, partial(self._read_all, draft, batch, how))
        if not drew:
            return grads
        # A forward that has never drawn before: once more, each member by itself.
        self._memo["drew"] = True
        return self.read(draft, batch, how)

    def chance(self, draft: Draft, how: Pass = WHOLE) -> AbstractContextManager[None]:
        """Let each member draw as it would alone; to take draws apart costs more than a small step without any."""
        return self._streams(draft, how) if self._memo.get("drew") else keyed(self.key(draft, how))

    def vet(self, draft: Draft, grads: Grads) -> None:
        """Refuse gradients when no member has a loss that is finite, if the inner step would."""
        loss = grads.metrics["loss"]
        if loss.device.type != "cpu" or is_abstract(loss) or any(map(math.isfinite, loss.tolist())):
            return
        first = {name: value[0] if self._per_member(value) else value for name, value in grads.metrics.items()}
        self.step.vet(draft, attrs.evolve(grads, metrics=first))

    def write(self, draft: Draft, grads: Grads) -> None:
        """Write the update of all members."""
        self._fits(draft)
        self._write_all(draft, grads, self.step.write)

    def note(self, draft: Draft, grads: Grads) -> None:
        """Report what the inner step does."""
        if isinstance(self.step, Wrapped):
            self._write_all(draft, grads, self.step.note)
        else:
            self.step.note(draft, grads)

    def close(self, draft: Draft) -> bool:
        """Write what is open at the end of a loop."""
        closed: list[bool] = []
        if isinstance(self.step, Wrapped):
            self._write_all(draft, Grads({}), lambda inner, _: closed.append(self.step.close(inner)))
        return any(closed)

    def text(self) -> str:
        """Say the inner program: a population is the same program as each of its members."""
        return self.step.text()

    # ------------------------------------------------------------------ inside
    def _look(self, draft: Draft, batch: Any, how: Pass) -> None:
        """Find out, once, whether the forward draws at random, and from where.

        Raises:
            SweepError: from numpy's or Python's generator, which would say the same to all members.
        """
        with keyed_everywhere(self.key(draft, how)) as everywhere:
            _, self._memo["drew"] = draws(self.device, partial(self._read_all, draft, batch, how))
            if everywhere.drew():
                raise SweepError(
                    "expected a model and a loss that draw from torch's generators only, but they use numpy's or "
                    "Python's, which would say the same to all members; draw with torch"
                )
        # Another step of the same state may tell them apart.
        alone = not self.slot
        if not self._memo["drew"] and alone and self.wrapper.members > 1 and _are_one(draft):
            warnings.warn(
                SameMembers(
                    f"the {self.wrapper.members} members of this sweep are one run: they begin with the same weights "
                    "and hyper-parameters, and nothing is drawn at random; give each its own, with "
                    "TrainStep(..., init=pr.initial.Fresh(make_model)) or other rules, or with Vmap(..., hyper=...)"
                ),
                stacklevel=2,
            )

    @contextmanager
    def _streams(self, draft: Draft, how: Pass) -> Iterator[None]:
        keys = [self.step.key({**draft, "seed": seed}, how) for seed in draft[SEEDS].tolist()]
        with keyed(keys[0]), Streams(keys):
            yield

    def _read_all(self, draft: Draft, batch: Any, how: Pass) -> Grads:
        told: list[Grads] = []
        shared, mine = self._parted(draft, without="optim")

        def one(mine: Draft) -> tuple[Any, ...]:
            grads = self.step.read({HOST: {}, **shared, **mine, REPORT: {}}, batch, how)
            told.append(attrs.evolve(grads, weight=_common(grads.weight)))
            return grads.grads, grads.buffers, grads.metrics

        gradients, buffers, metrics = mapped(one, mine)
        return attrs.evolve(told[0], grads=gradients, buffers=buffers, metrics=metrics)

    def _write_all(self, draft: Draft, grads: Grads, act: Callable[[Draft, Grads], Any]) -> None:
        """Let a function write into a draft, once for all members."""
        shared, mine = self._parted(draft)
        shared = {HOST: self.host(draft), **shared} if HOST not in shared else shared
        own = {name: value for name, value in grads.metrics.items() if self._per_member(value)}

        def one(mine: Draft, gradients: Draft, own: Draft) -> tuple[Draft, Draft]:
            inside = {**shared, **mine, REPORT: {}}
            act(inside, attrs.evolve(grads, grads=gradients, metrics={**grads.metrics, **own}))
            return {name: inside[name] for name in mine}, inside[REPORT]

        after, report = mapped(one, mine, grads.grads, own)
        draft.update(after)
        draft[REPORT].update(report)

    def _parted(self, draft: Draft, *, without: str = "") -> tuple[Draft, Draft]:
        """Part a draft into what all members share and what each has."""
        if "own" not in self._memo:
            self._memo["own"] = frozenset(self.step.draft(0)).difference(SHARED)
        own = self._memo["own"]
        mine = {name: draft[name] for name in own if name != without}
        return {name: value for name, value in draft.items() if name not in own and name != SEEDS}, mine

    def _per_member(self, value: Tensor) -> bool:
        return bool(value.ndim) and len(value) == self.wrapper.members

    def _fits(self, draft: Draft) -> None:
        if members(draft) != self.wrapper.members:
            got = f"a population of {members(draft)}" if members(draft) else "the state of a single run"
            raise StateError(
                f"expected a population of {self.wrapper.members}, got {got}; make one with sweep.init(seed) or "
                "pr.stack(states), or take another Vmap"
            )


def _are_one(draft: Draft) -> bool:
    """Say whether all members are alike: their weights, hyper-parameters, and all else that each has of its own."""
    own = [draft[name] for name in draft if name not in (*SHARED, SEEDS, HOST)]
    trees = [tree for tree in own if not isinstance(tree, Tensor)]
    return all((leaf == leaf[:1]).all() for tree in trees for _, leaf in leaves(tree) if leaf.ndim)


def _set(known: Draft, hyper: Settings) -> None:
    for name, values in hyper.items():
        if name not in known:
            raise ValueError(f"expected hyper-parameters among {sorted(known)}, which the step has, got {name!r}")
        known[name] = torch.tensor(values, dtype=known[name].dtype, device=known[name].device)


def _common(weight: float | Tensor) -> float | Tensor:
    """Refuse a weight that each member has its own of: batches could not be joined by it."""
    if isinstance(weight, Tensor) and torch._C._functorch.is_batchedtensor(weight):
        raise SweepError(
            "expected a loss whose weight depends on the batch alone, got one that differs from member to member; "
            "give pr.Loss a weight that is counted in the batch"
        )
    return weight
