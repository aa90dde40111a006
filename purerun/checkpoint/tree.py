"""The tree of a state as paths, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from purerun.state import REPORT, Draft, State


def empty_trees(state: State) -> list[str]:
    """List the sub-trees that have no entry, as paths; leaves alone do not show them.

    >>> from purerun.state import seal
    >>> empty_trees(seal({"params": {}, "a/b": {"c": {}}, "metrics": {}}))
    ['a~1b/c', 'params']
    """
    return list(_empty(state, ""))


def grow(leaves: Mapping[str, Tensor], empty: Iterable[str]) -> Draft:
    """Make a draft from leaves and empty sub-trees, each by its path.

    Raises:
        ValueError: one path goes through another's leaf.

    >>> grow({}, ["a~1b/c", "params"])
    {'a/b': {'c': {}}, 'params': {}}
    """
    draft: Draft = {}
    for path, value in (*((path, {}) for path in empty), *leaves.items()):
        *outer, name = (part.replace("~1", "/").replace("~0", "~") for part in path.split("/"))
        tree = draft
        for part in outer:
            tree = tree.setdefault(part, {})
            if not isinstance(tree, dict):
                raise ValueError(f"{path} goes through a leaf")
        if name in tree:
            raise ValueError(f"{path} is there twice")
        tree[name] = value
    return draft


def _empty(tree: State, path: str) -> Iterator[str]:
    for name in sorted(tree.names()):
        value = tree[name]
        if not isinstance(value, State) or (not path and name == REPORT):
            continue
        # As in `identity.named_leaves`.
        where = path + name.replace("~", "~0").replace("/", "~1")
        if value.names():
            yield from _empty(value, where + "/")
        else:
            yield where
