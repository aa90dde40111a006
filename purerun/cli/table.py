"""Plain tables of text, which look the same in a terminal, in a file and in a mail."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?( [kMGT]?B)?|nan|-?inf|-")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write rows below a head, in columns; those of numbers are flush right.

    >>> print(table(["name", "size"], [["a", "8"], ["bc", "16"]]), end="")
    name  size
    a        8
    bc      16
    """
    body = [list(row) for row in rows]
    columns = list(zip(head, *body, strict=True))
    widths = [max(map(len, column)) for column in columns]
    flush = [all(_NUMBER.fullmatch(cell) for cell in column[1:] if cell) for column in columns]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, flush, strict=True)
        )
        for row in [list(head), *body]
    )
    return "".join(line.rstrip() + "\n" for line in lines)


def size(count: int) -> str:
    """Say a number of bytes as people do.

    >>> size(512), size(12_345), size(416_000_000)
    ('512 B', '12.3 kB', '416 MB')
    """
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{value:.3g} {unit}"
