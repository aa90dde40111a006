"""How a command ends: exit codes, and which errors are the user's own mistakes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from types import TracebackType

DONE = 0
FAILED = 1
MISTAKE = 2
INTERRUPTED = 128 + 2  # as shells say it of SIGINT
TERMINATED = 128 + 15  # and of SIGTERM


# What the system says when it is not about a file of a name.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

_PRINTERS = {"cyclopts", "rich"}


class Terminated(BaseException):
    """SIGTERM came before there was anything to save; like KeyboardInterrupt, for nobody to catch on the way."""


class Mistake(Exception):
    """Something that the user asked for cannot be done; the message says what to do instead."""


def say(text: str) -> None:
    """Tell the person at the terminal something, in one line.  Results go to stdout, all else here."""
    # Names of files may hold anything, and must not steer the terminal.
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    print(f"purerun: {shown}", file=sys.stderr, flush=True)  # noqa: T201


def told(error: Exception) -> str:
    """Say an error in one line, with the notes that it was given on its way."""
    text = _refusal(error) if isinstance(error, OSError) else str(error)
    lines = [line.strip() for line in text.splitlines()]
    notes = getattr(error, "__notes__", [])
    return " ".join(lines) + (f" ({'; '.join(notes)})" if notes else "")


def is_misfortune(error: Exception) -> bool:
    """Say whether an error is nobody's mistake: the disk is full, say."""
    if isinstance(error, OSError):
        return (error.filename is not None or error.errno in _DISK) and _raised_here(error)
    from purerun.checkpoint import SaveError
    from purerun.processes import ProcessLost

    return isinstance(error, SaveError | ProcessLost)


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
    from purerun.wrappers.graph import CompileError

    known = (
        BatchError,
        CheckpointError,
        CompileError,
        EmptyLoader,
        LossError,
        ModelError,
        NonFiniteLoss,
        RecipeError,
        SinkError,
        StateError,
    )
    return isinstance(error, known) or (isinstance(error, ValueError) and _raised_here(error))


def _refusal(error: OSError) -> str:
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}cannot be read or written: {error.strerror}; look who may do so, and whether there is space"


def _raised_here(error: Exception) -> bool:
    """Say whether purerun itself raised an error, or asked Python's library for what failed.

    And not the code of a recipe, or another library.
    """
    names = [name for name in _modules(error.__traceback__) if name.partition(".")[0] not in _asked(error)]
    return bool(names) and names[-1].startswith("purerun.")


def _modules(trace: TracebackType | None) -> Iterator[str]:
    """List the modules through which an error came, the one that raised it last."""
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next


def _asked(error: Exception) -> frozenset[str]:
    # A ValueError of Python's library says nothing to a user; what the system says of a file does.
    return sys.stdlib_module_names | _PRINTERS if isinstance(error, OSError) else frozenset()
