"""A place beside a value for what can be made from it again at any time."""

from __future__ import annotations

from typing import Any


class Memo(dict[Any, Any]):
    """Things that can be made again at any time: a copy of the value that holds them starts without.

    >>> import copy
    >>> copy.deepcopy(Memo(a=1))
    {}
    """

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()
