"""A step whose halves are compiled."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from purerun import batch as _batch
from purerun.grad import WHOLE, Grads, Pass
from purerun.optim.memo import Memo
from purerun.optim.optimizer import Untraceable
from purerun.schedule import Affine
from purerun.state import REPORT, Draft, lazy_clone
from purerun.step import HOST, Step
from purerun.valid import one_of, whole
from purerun.wrappers.graph import CompileError, Function, Graph, Groups, containers
from purerun.wrappers.wrapper import Wrapped, Wrapper

Names: TypeAlias = Sequence[tuple[Hashable, tuple[str, ...]]]


@attrs.frozen
class Compile(Wrapper):
    """Compile what it stands around: by torch's inductor, to one graph for each half of the step.

    Everything inside of it becomes part of the graphs; what decides by the value of a tensor or of a
    counter cannot, and belongs around it.  Counters, schedules, hyper-parameters and seeds change
    without a new graph; a batch of another shape takes a new one (so the smaller last batch of an epoch
    is compiled once, too).

    Compiled arithmetic is not the eager one bit for bit: sums are taken in another order, so a step differs in
    the last digits.  It is a function of its inputs all the same: run again, resumed or replayed on the same
    machine with the same torch, it gives the same bits.  Chance is the same as without: the same dropout masks.

    Attributes:
        what: "step" for gradients and update, or "grad" for the gradients alone, and torch's fused
            kernel for the update: for large models on the CPU, and for optimizers that cannot be traced.
        graphs: how many graphs a half may need before that is an error: batches of ever new shapes
            would compile for ever.

    >>> import purerun as pr
    >>> Compile("grad")
    Compile(what='grad', graphs=8)
    """

    what: Literal["step", "grad"] = attrs.field(default="step", validator=one_of("step", "grad"))
    graphs: int = attrs.field(default=8, validator=whole(1), kw_only=True)

    def wrapped(self, step: Step) -> Step:
        """Make the step whose halves are compiled."""
        return Compiled(step, self)


@attrs.frozen
class Compiled(Wrapped):
    """A step with `Compile` around it."""

    wrapper: Compile
    _graphs: Memo = attrs.field(init=False, eq=False, repr=False, factory=Memo)

    @property
    def mappable(self) -> bool:
        """Whether graphs can be mapped over: they cannot."""
        return False

    def read(self, draft: Draft, batch: Any, how: Pass = WHOLE) -> Grads:
        """Compute gradients by a graph.

        Raises:
            CompileError: it cannot be compiled, or a wrapper around it puts a `with` block around the forward pass.
        """
        _refuse_twice(draft)
        if how.within:
            raise CompileError(
                "expected no `with` block around the forward pass of a compiled step, because a graph keeps what it "
                "was traced in; put the wrapper that makes it inside of Compile"
            )
        if self.device.type != "cpu":
            batch = _batch.move(batch, self.device)
        loose, nest = _flat(batch)
        if how.scale is not None:
            loose.append(how.scale)

        def make() -> Function:
            # Once without a graph: what is wrong with the model, the loss or the batch is said as always.
            self.step.read(_copied(draft), batch, how)
            return partial(_read, self.step, batch, scaled=how.scale is not None, autocast=how.autocast)

        key = ("read", nest, how.scale is None, how.autocast, _autocast())
        graph, inputs = self._found(key, make, {**draft, HOST: {}}, loose)
        # Only now: to make a graph may draw, too.
        with self.chance(draft, how):
            groups, grads = graph(inputs)
        draft["buffers"].update(groups.pop("buffers"))
        return _received(grads, groups, draft["buffers"])

    def write(self, draft: Draft, grads: Grads) -> None:
        """Write the update by a graph, in place."""
        if self.wrapper.what == "grad":
            self.step.write(draft, grads)
            return
        maps = self.host(draft)
        groups = _handed(grads, weight=_scalar(grads.weight), **_table(maps))
        loose = [tensor for named in groups.values() for tensor in named.values()]
        names = [(group, tuple(named)) for group, named in groups.items()]
        last = grads.last and self.step.turns
        key = ("write", last, *names)
        make = partial(partial, _write, self.step, names, tuple(maps), last=last)
        graph, inputs = self._found(key, make, {**draft, HOST: {}}, loose)
        outputs, _ = graph(inputs)
        draft[REPORT].update(outputs[REPORT])

    def _found(
        self, key: Any, make: Callable[[], Function], draft: Draft, loose: list[Tensor]
    ) -> tuple[Graph, list[Tensor]]:
        for graph in self._graphs.get(key, ()):
            inputs = graph.inputs(draft, loose)
            if graph.fits(inputs):
                return graph, inputs
        graph = self._added(key, make, draft, loose)
        return graph, graph.inputs(draft, loose)

    def _added(self, key: Any, make: Callable[[], Function], draft: Draft, loose: list[Tensor]) -> Graph:
        half = key[0]
        if sum(len(graphs) for other, graphs in self._graphs.items() if other[0] == half) >= self.wrapper.graphs:
            raise CompileError(
                f"expected at most {self.wrapper.graphs} graphs for one half of a step, but another kind of batch or "
                "state wants one more; pad or bucket the batches (and leave out of them what is no tensor and "
                "differs), or allow more with Compile(graphs=...)"
            )
        graph = Graph(make(), draft, loose)
        self._graphs.setdefault(key, []).append(graph)
        return graph


def _refuse_twice(draft: Draft) -> None:
    if HOST in draft:
        raise CompileError(
            "expected a step without Compile inside of what is compiled or mapped; wrap with one Compile, around it all"
        )


def _read(
    step: Step,
    example: Any,
    draft: Draft,
    tensors: list[Tensor],
    *,
    scaled: bool,
    autocast: torch.dtype | None,
) -> tuple[Groups, Grads]:
    """Read as a function of tensors alone, to be traced."""
    scale = tensors.pop() if scaled else None
    leaves, nest = tree_flatten(example)
    given = iter(tensors)
    batch = tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], nest)
    before = dict(draft["buffers"])
    grads = step.read(draft, batch, Pass(scale=scale, autocast=autocast))
    # Those that were written into are where they belong.
    buffers = {name: leaf for name, leaf in grads.buffers.items() if leaf is not before[name]}
    groups = {**_handed(grads, **_tensors(weight=grads.weight)), "buffers": buffers}
    return groups, attrs.evolve(grads, grads={}, buffers={}, metrics={}, kept={})


def _write(
    step: Step, names: Names, maps: Sequence[str], draft: Draft, tensors: list[Tensor], *, last: bool
) -> tuple[Groups, None]:
    """Write as a function of tensors alone, to be traced; what is new is written over what was."""
    given = iter(tensors)
    groups: Groups = {group: dict(zip(named, given, strict=False)) for group, named in names}
    rows = groups[""]["maps"].unbind() if maps else ()
    draft[HOST] = {name: Affine(*row.unbind()) for name, row in zip(maps, rows, strict=True)}  # type: ignore[arg-type]
    before = _leaves(draft)
    try:
        step.write(draft, _received(Grads({}, last=last), groups, {}))
    except Untraceable as error:
        raise CompileError(f'{error}; or compile the gradients alone: Compile("grad")') from error
    after = [(before[place], leaf) for place, leaf in _leaves(draft).items() if leaf is not before[place]]
    # Copies first: one entry may become what another one was.
    for old, new in [(old, new.clone()) for old, new in after]:
        old.copy_(new)
    return {REPORT: draft[REPORT]}, None


def _handed(grads: Grads, **single: Tensor) -> Groups:
    """List the tensors of gradients as groups by name."""
    kept = {("kept", slot): tree for slot, tree in grads.kept.items()}
    return {"grads": grads.grads, "metrics": grads.metrics, "": single, **kept}


def _received(grads: Grads, groups: Groups, buffers: dict[str, Tensor]) -> Grads:
    """Put groups by name into gradients."""
    return attrs.evolve(
        grads,
        grads=groups["grads"],
        weight=groups[""].get("weight", grads.weight),
        buffers=buffers,
        metrics=groups["metrics"],
        kept={group[1]: tree for group, tree in groups.items() if isinstance(group, tuple)},
    )


def _tensors(**values: Any) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _leaves(draft: Draft) -> dict[Any, Tensor]:
    return {(path, name): leaf for path, named in containers(draft, ()) for name, leaf in named.items()}


def _copied(tree: Draft) -> Draft:
    return {name: _copied(value) if isinstance(value, dict) else lazy_clone(value) for name, value in tree.items()}


def _flat(batch: Any) -> tuple[list[Tensor], Hashable]:
    """List the tensors of a batch, and say everything else about it."""
    kind = type(batch)
    if kind in (tuple, list, dict):
        values = [*batch.values()] if kind is dict else [*batch]
        # Nearly all batches; a walk over a nest costs as much as a small graph.
        if all(type(value) is Tensor for value in values):
            return values, (kind, tuple(batch) if kind is dict else len(values))
    leaves, nest = tree_flatten(batch)
    rest = tuple(Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], (nest, tuple(map(_constant, rest)))


def _constant(leaf: Any) -> Hashable:
    if isinstance(leaf, Hashable):
        return leaf
    raise CompileError(
        f"expected a batch of tensors, numbers and texts to compile for, got {type(leaf).__name__} in it; make it a "
        "tensor"
    )


def _scalar(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.scalar_tensor(value, dtype=torch.float64, device="cpu")


def _table(maps: Mapping[str, Affine]) -> dict[str, Tensor]:
    """Put the numbers of maps into one tensor: float64, shape [maps, 2]."""
    return {"maps": torch.tensor([*maps.values()], dtype=torch.float64, device="cpu")} if maps else {}


def _autocast() -> Any:
    """Say which autocast stands around the loop: a graph is traced inside of it."""
    if not torch._C._is_any_autocast_enabled():
        return None
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds)
