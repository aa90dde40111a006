"""The state of a training run as one immutable value: a locked tree of tensors.

A state is safe to keep, not only locked: whatever is made from it holds lazy clones
(copy-on-write) of its tensors, so no later write can reach it.  A state is built in
two moves: `unseal` hands out a draft, plain dicts of tensors that the caller alone
owns and may write into, and `seal` makes the draft a value.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, NoReturn, TypeAlias

import torch
from tensordict import TensorDict
from torch import Tensor

from purerun import loan

Draft: TypeAlias = dict[str, Any]
"""A state under construction: nested plain dicts of tensors that one function owns."""

REPORT = "metrics"
"""What the last step measured: carried for the reader, neither saved nor hashed nor read by a step."""

COUNTERS = ("epoch", "iter", "cursor")

_NO_BATCH = torch.Size([])
_FLAT = frozenset({Tensor})
_clone = torch._lazy_clone


class StateError(Exception):
    """A state was asked for something that its contents or its age do not allow."""


class StaleState(StateError):
    """A leased state was used after its loop had moved on."""


class _Contents(Mapping[str, Any]):
    """What a sealed container holds: a mapping that notes whether anybody has looked.

    Not a dict, so that no C code can read it past these methods.
    """

    __slots__ = ("seen", "tree")

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.seen = False

    def __getitem__(self, name: str) -> Any:
        self.seen = True
        return self.tree[name]

    def __iter__(self) -> Iterator[str]:
        self.seen = True
        return iter(self.tree)

    def __len__(self) -> int:
        return len(self.tree)

    def __contains__(self, name: object) -> bool:
        return name in self.tree

    def get(self, name: str, default: Any = None) -> Any:
        self.seen = True
        return self.tree.get(name, default)

    def keys(self) -> KeysView[str]:
        self.seen = True
        return self.tree.keys()

    def values(self) -> ValuesView[Any]:
        self.seen = True
        return self.tree.values()

    def items(self) -> ItemsView[str, Any]:
        self.seen = True
        return self.tree.items()

    def copy(self) -> dict[str, Any]:
        self.seen = True
        return self.tree.copy()


class _Gone(Mapping[str, Any]):
    """What an emptied container holds: a mapping in which every look-up raises."""

    def _raise(self, *_: Any, **__: Any) -> NoReturn:
        raise StaleState(
            "this state was leased and its loop has moved on; keep a state with `kept = state.hold()` "
            "before the next one is taken, or ask the loop for values with lease=False"
        )

    tree = property(_raise)
    __getitem__ = __iter__ = __len__ = __contains__ = _raise
    keys = values = items = get = copy = update = pop = __setitem__ = __delitem__ = _raise


_GONE = _Gone()


class State(TensorDict):
    """An immutable tree of tensors, with names and dots as in a `state_dict`.

    Reading is a TensorDict's; writing is refused; `replace` makes the next value.

    >>> state = seal({"params": {"fc.weight": torch.zeros(2)}, "iter": torch.tensor(0)})
    >>> later = state.replace({"iter": 1})
    >>> int(state["iter"]), int(later["iter"]), float(later["params"]["fc.weight"].sum())
    (0, 1, 0.0)
    >>> state["iter"] = torch.tensor(5)
    Traceback (most recent call last):
    ...
    purerun.state.StateError: a State is a value: nothing is written into it; make the next one with state.replace(...)
    """

    def replace(self, changes: Mapping[str, Any] | None = None, /, **named: Any) -> State:  # type: ignore[override]
        """Make a state in which some entries are others; nested entries are merged by name.

        Numbers take the dtype of the leaf that they replace.  A new entry is added.

        Args:
            changes: nested mapping of tensors or numbers.
            named: the same, as keyword arguments.

        Raises:
            StateError: a leaf was given for a sub-tree, or the other way round.
        """
        draft = _plain(self)
        _merge(draft, {**dict(() if changes is None else changes.items()), **named}, ())
        return seal(draft)

    def hold(self) -> State:
        """Make a value of a leased state: it stays whole when the loop moves on."""
        return seal(_plain(self))

    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """List the top-level entries."""
        return tuple(peek(self))

    def copy(self) -> State:
        """Make the same value again, in containers and tensors of its own (copy-on-write)."""
        return self.hold()

    __copy__ = copy

    def clone(self, recurse: bool = True, **_: Any) -> State:  # noqa: FBT001, FBT002  (TensorDict's signature)
        """Make the same value again; lazily, as all copies of a state are."""
        return self.hold()

    def select(self, *names: str, **_: Any) -> State:  # type: ignore[override]
        """Make a state of some top-level entries.

        Raises:
            StateError: there is no such entry.

        >>> seal({"iter": torch.tensor(0), "ema": {"w": torch.zeros(1)}}).select("iter").names()
        ('iter',)
        """
        tree = peek(self)
        if absent := [name for name in names if name not in tree]:
            raise StateError(f"expected names among {list(tree)}, got {absent}")
        return seal({name: _plain(tree[name]) for name in names})

    def exclude(self, *names: str, **_: Any) -> State:  # type: ignore[override]
        """Make a state that lacks some top-level entries.

        >>> seal({"iter": torch.tensor(0), "ema": {"w": torch.zeros(1)}}).exclude("ema").names()
        ('iter',)
        """
        return seal({name: _plain(value) for name, value in peek(self).items() if name not in names})

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.is_locked:
            raise StateError(_READ_ONLY)
        super().__setitem__(index, value)

    def unlock_(self) -> NoReturn:  # type: ignore[override]
        """Refuse: a state is a value."""
        raise StateError(
            "a State cannot be unlocked, because others may hold it; make the next one: state.replace(...)"
        )


_READ_ONLY = "a State is a value: nothing is written into it; make the next one with state.replace(...)"


def _refusing(name: str) -> Callable[..., Any]:
    """Make a method that writes in place refuse to, on a state; what TensorDict builds on the way is not locked."""
    method = getattr(TensorDict, name)

    def refuse(self: State, *arguments: Any, **named: Any) -> Any:
        peek(self)  # says so if there is nothing left to write into
        if self.is_locked:
            raise StateError(_READ_ONLY)
        return method(self, *arguments, **named)

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = "Refuse, on a state: it is a value."
    return refuse


# TensorDict's lock guards names; its many methods that write into tensors end in "_".
for _name in dir(TensorDict):
    if _name.endswith("_") and not _name.startswith("_") and _name not in ("lock_", "unlock_"):
        setattr(State, _name, _refusing(_name))


def lazy_clone(tensor: Tensor) -> Tensor:
    """Copy a tensor without copying its memory until one of the two is written to.

    `torch._lazy_clone` is torch's own copy-on-write; storage that torch did not
    allocate (a mapped file, a numpy array) cannot share and is copied at once.

    >>> a = torch.zeros(2)
    >>> b = lazy_clone(a)
    >>> b += 1
    >>> a.tolist(), b.tolist()
    ([0.0, 0.0], [1.0, 1.0])
    """
    if _transformed():
        return tensor.clone()  # inside vmap and grad: a copy that they know
    try:
        return _clone(tensor)
    except RuntimeError:
        return tensor.clone()


def unseal(state: State, *, lease: bool = False) -> Draft:
    """Open a state as a draft: lazy clones in plain dicts, without the last report.

    Args:
        state: what to open; it stays as it is.
        lease: the caller will `release` the state before it writes into anything but buffers,
            and will replace the counters.  Containers that nobody has looked into are then
            handed out as they are.

    >>> state = seal({"params": {"w": torch.zeros(2)}})
    >>> draft = unseal(state)
    >>> draft["params"]["w"] += 1
    >>> state["params"]["w"].tolist()
    [0.0, 0.0]
    """
    if not isinstance(state, State):
        raise StateError(
            f"expected a State, got {type(state).__name__}; make one with step.init(seed) or pr.load(path)"
        )
    draft: Draft = {}
    for name, value in peek(state).items():
        if name == REPORT:
            continue
        if not lease or name == "buffers":
            # The forward pass writes into buffers, and may fail after it has.
            draft[name] = _plain(value)
        else:
            draft[name] = value if name in COUNTERS else _moved(value)
    draft[REPORT] = {}
    return draft


def seal(draft: Draft) -> State:
    """Make a draft a value.  Its dicts and tensors belong to the state from now on."""
    if dict in map(type, draft.values()):
        for name, value in draft.items():
            if type(value) is dict:
                draft[name] = seal(value)
    # A TensorDict filled by hand: its constructor checks each entry, and its lock leaves a weak
    # reference to the parent in each sub-tree, together at five times the price.  What that
    # lock would guard against, `unlock_` refuses.
    state = object.__new__(State)
    state.__dict__.update(
        _tensordict=_Contents(draft), _batch_size=_NO_BATCH, _device=None, _td_dim_names=None, _is_locked=True
    )
    return state


def release(state: State) -> None:
    """Empty a leased state, so that its tensors have no owner but the next state.

    A tensor that somebody took out of it stays right: its memory is copy-on-write.
    Any further use of the state raises `StaleState`.
    """
    loan.collect()
    _empty(state)


def _empty(state: State) -> None:
    tree = peek(state)
    if State in map(type, tree.values()):
        for value in tree.values():
            if type(value) is State:
                _empty(value)
    state.__dict__["_tensordict"] = _GONE


def leaves(state: Mapping[str, Any] | State, *, report: bool = False) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Walk over the leaves as (path, tensor), in the order of their sorted paths.

    The report of the last step is left out unless asked for.

    >>> state = seal({"iter": torch.tensor(1), "params": {"b": torch.zeros(1), "a": torch.zeros(1)}, "metrics": {}})
    >>> [path for path, _ in leaves(state)]
    [('iter',), ('params', 'a'), ('params', 'b')]
    """
    # Seen, unlike in `peek`: the caller may keep the tensors.
    tree = state._tensordict if isinstance(state, State) else state
    for name in sorted(tree):
        if name == REPORT and not report:
            continue
        value = tree[name]
        if isinstance(value, Tensor):
            yield (name,), value
        else:
            yield from (((name, *path), leaf) for path, leaf in leaves(value, report=True))


def missing(slots: Draft, state: State) -> Draft:
    """Choose the slots that a state does not have yet.

    >>> missing({"a": torch.zeros(1), "scores": {"x": torch.zeros(1)}}, seal({"a": torch.ones(1), "scores": {}}))
    {'scores': {'x': tensor([0.])}}
    """
    have = peek(state)
    chosen = {
        name: missing(value, have[name]) if isinstance(value, dict) and name in have else value
        for name, value in slots.items()
        if isinstance(value, dict) or name not in have
    }
    return {name: value for name, value in chosen.items() if not isinstance(value, dict) or value or name not in have}


def peek(state: State) -> Mapping[str, Any]:
    """Look into a container by name, at the price of a dict and without being seen.

    The tensors found so must not be kept, but for those of the report: a lease would write
    into them.
    """
    contents: Any = state._tensordict
    return contents if type(contents) is dict else contents.tree


def _plain(value: Any) -> Any:
    """Clone a tree lazily into plain dicts."""
    # By exact type: isinstance() would ask Tensor's metaclass, and this is the hot path.
    if type(value) is not State:
        return lazy_clone(value)
    tree = peek(value)
    if _FLAT.issuperset(map(type, tree.values())) and not _transformed():
        try:
            return dict(zip(tree, map(_clone, tree.values()), strict=True))
        except RuntimeError:
            pass  # some tensor cannot share its memory: one by one
    return {name: _plain(inner) for name, inner in tree.items()}


def _moved(value: Any) -> Any:
    """Take the contents of containers that nobody has looked into; clone the others."""
    if type(value) is not State:
        return lazy_clone(value)
    contents = value._tensordict
    if type(contents) is not _Contents or contents.seen:
        return _plain(value)
    if _FLAT.issuperset(map(type, contents.tree.values())):
        return dict(contents.tree)
    return {name: _moved(inner) if type(inner) is State else inner for name, inner in contents.tree.items()}


def _merge(draft: Draft, changes: Mapping[str, Any], path: tuple[str, ...]) -> None:
    if draft and path[:1] in _CLOSED and (strange := [name for name in changes if name not in draft]):
        near = difflib.get_close_matches(strange[0], draft, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise StateError(f"expected names among {list(draft)[:8]} in {'/'.join(path)}, got {strange[0]!r}{hint}")
    for name, value in changes.items():
        old, where = draft.get(name), (*path, name)
        if isinstance(value, TensorDict | Mapping):
            if isinstance(old, Tensor):
                raise StateError(f"expected a tensor at {'/'.join(where)}, got a mapping; give the leaf itself")
            _merge(draft.setdefault(name, {}), dict(value.items()), where)
        elif isinstance(old, dict):
            raise StateError(f"expected a mapping of names at {'/'.join(where)}, got {type(value).__name__}")
        else:
            draft[name] = _leaf(value, old)


_CLOSED = (("hyper",),)
"""What is read by name and set by hand: a misspelt name in there would be read by nobody."""


def _transformed() -> bool:
    return torch._C._functorch.maybe_current_level() is not None


def _leaf(value: Any, old: Tensor | None) -> Tensor:
    if isinstance(value, Tensor):
        # Under torch.func the graph is kept: that is how one differentiates by a hyper-parameter.
        return lazy_clone(value if _transformed() else value.detach())
    if old is not None:
        return torch.tensor(value, dtype=old.dtype, device=old.device)
    # Not torch's default dtype: a hyper-parameter such as 0.1 must stay the number it was.
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None, device="cpu")
