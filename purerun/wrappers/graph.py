"""A function of drafts as one compiled graph of flat tensors.

The function runs once, in plain Python, on stand-ins that note each operation (`make_fx`), backward
passes and transforms included; inductor compiles what was noted.  Not through dynamo, whose guards look
at every attribute of every layer at each call: a step promises to be a function of its tensors, so their
dtypes, shapes and strides are all there is to guard.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, fx
from torch._C._dynamo.guards import TensorGuards
from torch._inductor.exc import InductorError, InvalidCxxCompiler
from torch._inductor.utils import fresh_cache
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from purerun.origin import where
from purerun.state import COUNTERS, REPORT, Draft

Path: TypeAlias = tuple[str, ...]
Groups: TypeAlias = dict[Hashable, dict[str, Tensor]]
Function: TypeAlias = Callable[[Draft, list[Tensor]], tuple[Groups, Any]]
"""Called with a draft and tensors, it gives groups of tensors by name, and a rest without tensors, always the same.

It may also write into the draft's tensors.
"""

_HOST_ONLY = (*COUNTERS, "seed")
_UNSEEN = ("stream", "scores", "fingerprint", REPORT)
_OPTIONS = {
    # Draw as the eager step does, from torch's generator: the same masks.
    "fallback_random": True,
    # Kinds are compared before each call.
    "size_asserts": False,
}

_NO_HOOKS = (
    "expected a step without activation checkpointing inside of Compile, or around it; leave one of the two out "
    "(a graph plans its memory as a whole)"
)


class CompileError(RuntimeError):
    """A step cannot be compiled, here or at all."""


class Graph:
    """A function traced on one draft and some tensors, and compiled for others of the same kinds.

    What the function does not use, it is not given at a call.

    >>> def scale(draft, tensors):
    ...     draft["w"].mul_(2)
    ...     return {"metrics": {"sum": draft["w"].sum() + tensors[0]}}, "rest"
    >>> draft = {"w": torch.ones(2), "unused": torch.ones(3)}
    >>> graph = Graph(scale, draft, [torch.tensor(1.0)])
    >>> graph(graph.inputs(draft, [torch.tensor(1.0)])), draft["w"].tolist()
    (({'metrics': {'sum': tensor(5.)}}, 'rest'), [2.0, 2.0])

    Args:
        function: what to compile.
        draft: an example.
        loose: an example of what else it is given.

    Raises:
        CompileError: it reads the value of a tensor, or there is no compiler.
    """

    def __init__(self, function: Function, draft: Draft, loose: Sequence[Tensor]) -> None:
        shelves = containers(draft, ())
        places = [(path, name) for path, tree in shelves for name in tree]
        given = [tensor for _, tree in shelves for tensor in tree.values()]
        self._outputs: list[tuple[Hashable, list[str]]] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            inner = _rebuilt(draft, dict(zip(places, tensors, strict=False)))
            outputs, self._rest = function(inner, list(tensors[len(places) :]))
            self._outputs[:] = [(group, list(named)) for group, named in outputs.items()]
            return [tensor for named in outputs.values() for tensor in named.values()]

        traced = _trace(flat, [*given, *loose])
        used = _drop_unused(traced)
        self._reads = _grouped([places[place] for place in used if place < len(places)])
        self._loose = [place - len(places) for place in used if place >= len(places)]
        example = [[*given, *loose][place] for place in used]
        sizes, strides = [list(tensor.shape) for tensor in example], [list(tensor.stride()) for tensor in example]
        # What dynamo compares tensors with, in one call: here by exact sizes and strides.
        self._guard = TensorGuards(  # type: ignore[call-arg]
            *example,
            dynamic_dims_sizes=sizes,  # type: ignore[arg-type]
            dynamic_dims_strides=strides,  # type: ignore[arg-type]
        )
        self._run = _compile(traced, example)

    def inputs(self, draft: Draft, loose: Sequence[Tensor]) -> list[Tensor]:
        """Gather what the graph reads.

        Raises:
            KeyError: the draft lacks something.
        """
        flat: list[Tensor] = []
        for path, names in self._reads:
            tree = draft
            for name in path:
                tree = tree[name]
            flat += map(tree.__getitem__, names)
        return flat + [loose[place] for place in self._loose]

    def fits(self, inputs: list[Tensor]) -> bool:
        """Say whether tensors are of the kinds for which this was compiled."""
        return bool(self._guard.check(*inputs))

    def __call__(self, inputs: list[Tensor]) -> tuple[Groups, Any]:
        """Run; what the function writes into is written into."""
        results = iter(self._run(*inputs))
        return {group: dict(zip(names, results, strict=False)) for group, names in self._outputs}, self._rest


class _HostOnly:
    """What stands for a counter inside of a graph, where it would be a constant for ever."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *_: Any) -> NoReturn:
        raise CompileError(
            f"expected a step without decisions by `{self._name}` inside of Compile: they would be made once, while it "
            "is traced; put the wrapper that makes them around Compile instead of into it"
        )

    __int__ = __index__ = __float__ = __bool__ = __getattr__ = __add__ = __sub__ = __mod__ = __eq__ = __lt__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def containers(tree: Draft, path: Path) -> list[tuple[Path, dict[str, Tensor]]]:
    """List the dicts of a draft that hold tensors which a graph may see."""
    seen = {name: value for name, value in tree.items() if path or name not in (*_HOST_ONLY, *_UNSEEN)}
    inner = [
        found for name, value in seen.items() if isinstance(value, dict) for found in containers(value, (*path, name))
    ]
    return [(path, {name: value for name, value in seen.items() if isinstance(value, Tensor)}), *inner]


def _rebuilt(tree: Draft, tensors: dict[tuple[Path, str], Tensor], path: Path = ()) -> Draft:
    """Make the draft that is traced: the same, with stand-ins for its tensors."""
    made: Draft = {}
    for name, value in tree.items():
        if not path and name in _HOST_ONLY:
            made[name] = _HostOnly(name)
        elif not path and name in _UNSEEN:
            made[name] = {}
        elif isinstance(value, dict):
            made[name] = _rebuilt(value, tensors, (*path, name))
        else:
            made[name] = tensors.get((path, name), value)
    return made


def _grouped(places: list[tuple[Path, str]]) -> list[tuple[Path, list[str]]]:
    groups: dict[Path, list[str]] = {}
    for path, name in places:
        groups.setdefault(path, []).append(name)
    return list(groups.items())


def _trace(flat: Callable[..., list[Tensor]], given: list[Tensor]) -> fx.GraphModule:
    decompositions = {torch.ops.aten._lazy_clone.default: torch.clone}
    tracer = make_fx(flat, decompositions, tracing_mode="fake", _allow_non_fake_inputs=True)
    try:
        # A part that runs again would draw again: the graph has no place for the generator's old state.  And
        # inductor does not know the recurrent layers of mkldnn, but what they are made of.
        with disable_saved_tensors_hooks(_NO_HOOKS), _without_mkldnn():
            return tracer(*given)
    except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode) as error:
        raise CompileError(
            "expected a step whose course does not depend on the values of tensors, but it reads one, "
            f"{where(error)}; compute with torch.where instead of deciding, or put what decides around Compile"
        ) from error
    except RuntimeError as error:
        if _NO_HOOKS in str(error):
            raise CompileError(_NO_HOOKS) from error
        raise


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    # Not torch.backends.mkldnn.flags, which warns of other settings that it writes.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # noqa: FBT003  (takes nothing else)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _drop_unused(traced: fx.GraphModule) -> list[int]:
    """Take away the inputs that nothing reads; say which are left."""
    traced.graph.eliminate_dead_code()
    inputs = traced.graph.find_nodes(op="placeholder")
    used = [place for place, node in enumerate(inputs) if node.users]
    for node in inputs:
        if not node.users:
            traced.graph.erase_node(node)
    traced.recompile()
    return used


def _compile(traced: fx.GraphModule, example: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    # What inductor's own code warns of is no fault of the user's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _run_of(traced, example)
        except InductorError as error:
            if isinstance(error.inner_exception, InvalidCxxCompiler):
                raise CompileError(
                    "expected a C++ compiler, which torch needs to compile for the CPU, found none; install g++ (or "
                    "set CXX), or leave Compile out"
                ) from error
            if not isinstance(error.inner_exception, ImportError):
                raise
        # A process that was killed while it compiled leaves half a file in torch's cache, for ever.
        with fresh_cache():
            return _run_of(traced, example)


def _run_of(traced: fx.GraphModule, example: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    return torch._inductor.compile(copy.deepcopy(traced), example, options=_OPTIONS)  # type: ignore[return-value]
