"""A mapping that is a value: it never changes, and has a hash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Item = TypeVar("Item")


class Fixed(Mapping[str, Item]):
    """A mapping that never changes, with its keys in order; lists in it become tuples.

    >>> Fixed({"lr": 0.1, "betas": [0.9, 0.99]})
    Fixed({'betas': (0.9, 0.99), 'lr': 0.1})
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
        return f"Fixed({self._items!r})"


def _fixed(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_fixed, value))
    return Fixed(value) if isinstance(value, Mapping) else value
