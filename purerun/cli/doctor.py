"""The command that examines a recipe: `doctor`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, TextIO

from purerun.cli.exits import DONE
from purerun.cli.runs import Settings
from purerun.cli.values import Place, whole

FAULTS = 1


def doctor(
    recipe: Place,
    /,
    *,
    iters: Annotated[int, whole(2)] = 6,
    workers: Annotated[int, whole(0)] = 2,
    settings: Settings = None,
) -> int:
    """Run the laws on a recipe, and name the lines that break them.

    Each part is examined by itself; then a short run of all that is sound.
    The exit code is 0 if all laws hold, and 1 if faults were found.

    Args:
        recipe: The recipe file.
        iters: Iterations of the short run.
        workers: Worker processes to compare none with; 0 for no such comparison.
        settings: PATH=VALUE: change a value of the recipe. Can be repeated.
    """
    from purerun.doctor import examination, summary, told
    from purerun.recipe import load, override

    out, written = sys.stdout, sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # of what the recipe imports
    try:
        # What the recipe's own code prints is no result.
        with redirect_stdout(sys.stderr):
            value = override(load(recipe), settings or ())
            every = examination(value, iters=iters, workers=workers, tell=lambda each: _print(told(each), out))
    finally:
        sys.dont_write_bytecode = written
    _print(summary(every), out)
    return FAULTS if any(finding.kind == "fault" for each in every for finding in each.findings) else DONE


def _print(text: str, out: TextIO) -> None:
    out.write(text)
    out.flush()  # an examination takes a while
