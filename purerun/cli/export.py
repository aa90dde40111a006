"""The command that hands weights on: `export`."""

from __future__ import annotations

import sys
from typing import Annotated

from purerun.cli.exits import say
from purerun.cli.runs import Flag
from purerun.cli.values import whole


def export(
    path: str,
    out: str,
    /,
    *,
    weights: str = "",
    member: Annotated[int | None, whole(0)] = None,
    overwrite: Flag = False,
) -> None:
    """Write plain weights, which load in a plain PyTorch module.

    Its name is printed when the file is complete.  A .pth or .safetensors file of others is read as well, so
    that this also makes the one of the other.

    Args:
        path: A checkpoint, the directory of a run, or a file with weights (a path or a URL).
        out: The file: .safetensors, or .pth for a state_dict.
        weights: Which weights: ema for the average; the trained ones unless given.
        member: Of a sweep, the number of the member whose weights they are; the first is 0.
        overwrite: Replace a file that is there.
    """
    from purerun.checkpoint import export as write

    names = write(path, out, weights=weights, member=member, overwrite=overwrite)
    say(f"wrote {len(names)} tensors of {path}")
    sys.stdout.write(f"{out}\n")
