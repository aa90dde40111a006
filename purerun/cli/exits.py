"""How a command ends: exit codes, and which errors are the user's own mistakes."""

from __future__ import annotations

import sys

DONE = 0
FAILED = 1
MISTAKE = 2
INTERRUPTED = 128 + 2  # as shells say it of SIGINT
TERMINATED = 128 + 15  # and of SIGTERM


class Terminated(BaseException):
    """SIGTERM came before there was anything to save; like KeyboardInterrupt, for nobody to catch on the way."""


class Mistake(Exception):
    """Something that the user asked for cannot be done; the message says what to do instead."""


def say(text: str) -> None:
    """Tell the person at the terminal something.  Results go to stdout, all else here."""
    print(f"purerun: {text}", file=sys.stderr, flush=True)  # noqa: T201


def told(error: Exception) -> str:
    """Say an error in one line, with the notes that it was given on its way."""
    lines = [line.strip() for line in str(error).splitlines()]
    notes = getattr(error, "__notes__", [])
    return " ".join(lines) + (f" ({'; '.join(notes)})" if notes else "")


def is_misfortune(error: Exception) -> bool:
    """Say whether an error is nobody's mistake: the disk is full, say."""
    from purerun.checkpoint import SaveError

    return isinstance(error, SaveError)


def is_mistake(error: Exception) -> bool:
    """Say whether an error explains itself: whoever reads it needs no traceback."""
    if isinstance(error, Mistake):
        return True
    if is_misfortune(error):
        return False
    # Who raised one of these has imported torch already.
    from purerun.batch import BatchError
    from purerun.bind import ModelError
    from purerun.checkpoint import CheckpointError
    from purerun.grad import LossError
    from purerun.loop import EmptyLoader
    from purerun.recipe import RecipeError
    from purerun.sinks import SinkError
    from purerun.state import StateError
    from purerun.step import NonFiniteLoss

    known = (
        BatchError,
        CheckpointError,
        EmptyLoader,
        LossError,
        ModelError,
        NonFiniteLoss,
        RecipeError,
        SinkError,
        StateError,
    )
    return isinstance(error, known) or (isinstance(error, ValueError) and _raised_here(error))


def _raised_here(error: Exception) -> bool:
    """Say whether purerun itself raised an error, and not the code of a recipe or of a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("purerun.")
