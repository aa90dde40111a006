"""Mappings that are values: they never change, and have a hash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Item = TypeVar("Item")


class Fixed(Mapping[str, Item]):
    """A mapping that never changes, with its keys in order; lists in it become tuples.

    >>> Fixed({"lr": 0.1, "betas": [0.9, 0.99]})
    {'betas': (0.9, 0.99), 'lr': 0.1}
    >>> hash(Fixed({"a": 1})) == hash(Fixed({"a": 1}))
    True
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = {key: _fixed(items[key]) for key in sorted(items)}

    def __getitem__(self, key: str) -> Item:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


class Ordered(Fixed[Item]):
    """A mapping that never changes, and whose order means something.

    >>> Ordered({"b": 1, "a": 2}) == Ordered({"a": 2, "b": 1}), Fixed({"b": 1, "a": 2}) == Fixed({"a": 2, "b": 1})
    (False, True)
    """

    __slots__ = ()

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = dict(items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ordered) and tuple(self.items()) == tuple(other.items())

    def __hash__(self) -> int:
        return super().__hash__()

    def __repr__(self) -> str:
        return repr(self._items)


def _fixed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_fixed, value))
    return Fixed(value) if isinstance(value, Mapping) else value
