"""Tensors lent to another thread, which copies them; only the thread that lent them lets go of them.

A lazy clone shares its memory, and torch (2.13) counts the owners of such memory in a way that fails when two threads
let go of it, or write, at the same moment.  So the borrower never holds the last reference: it says how far it
has read, and the lender drops what was read, just before it writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import get_ident

from torch import Tensor

_OPEN: dict[int, list[Loan]] = {}
"""Thread -> its loans that are not over.  No result depends on it, only how long memory is shared."""


class Loan:
    """Lazy clones, lent by the thread that makes this.

    >>> loan = Loan([torch.zeros(2), torch.ones(1)])
    >>> [copy.tolist() for copy in loan.copies()]
    [[0.0, 0.0], [1.0]]
    >>> collect()
    >>> loan.over
    True
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors: list[Tensor | None] = list(tensors)
        self._read = self._dropped = 0
        _OPEN.setdefault(get_ident(), []).append(self)

    @property
    def over(self) -> bool:
        """Whether all was dropped."""
        return self._dropped == len(self._tensors)

    def copies(self) -> Iterator[Tensor]:
        """Copy one after the other to the CPU; for the borrower."""
        try:
            for place in range(len(self._tensors)):
                # No variable for the clone: it would be a reference that lives on.
                copy = self._tensors[place].to("cpu", copy=True)  # type: ignore[union-attr]
                self._read = place + 1
                yield copy
        finally:
            self._read = len(self._tensors)

    def drop(self) -> None:
        """Let go of what was read; for the lender."""
        for place in range(self._dropped, self._read):
            self._tensors[place] = None
        self._dropped = self._read


def collect() -> None:
    """Let go of what was read of all that this thread has lent; costs next to nothing when that is nothing."""
    if _OPEN and (loans := _OPEN.get(get_ident())):
        for loan in loans:
            loan.drop()
        if not (still := [loan for loan in loans if not loan.over]):
            del _OPEN[get_ident()]
        else:
            _OPEN[get_ident()] = still
