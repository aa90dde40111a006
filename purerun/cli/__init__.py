"""The command line.

One file for each group of commands.  They import what they need inside their functions:
`purerun --help` must answer at once, and torch takes seconds to import.
"""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

from cyclopts import App, CycloptsError

from purerun import __version__
from purerun.cli import compare, doctor, export, history, looks, runs, show, streams
from purerun.cli.exits import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISTAKE,
    TERMINATED,
    Terminated,
    is_misfortune,
    is_mistake,
    say,
    told,
)

app = App(
    name="purerun",
    help="Training runs as values: the same inputs give the same bits.",
    version=f"purerun {__version__}",
    suppress_keyboard_interrupt=False,
    help_format="plaintext",  # the renderers of richer texts take longer to import than all else
)
app.command(runs.train)
app.command(runs.judge, name="test")
app.command(show.show)
app.command(looks.schedule)
app.command(looks.digest)
app.command(export.export)
app.command(compare.diff)
app.command(history.verify)
app.command(compare.bisect)
app.command(history.rewind)
app.command(history.fork)
app.command(history.why)
app.command(history.seen)
app.command(doctor.doctor)


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 a mistake of the user, 130 and 143 stopped, 1 anything else.

    When nobody reads what it writes any more, it ends by SIGPIPE, as other programs do.

    Args:
        tokens: the words of the command line; None for those of this process.
    """
    streams.opened()
    # Until a training run takes over, these end the process as Ctrl-C does: by an exception.
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGUSR1, _terminate)
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show, warnings.showwarning)
        try:
            code = run(sys.argv[1:] if tokens is None else tokens)
        except BrokenPipeError:
            if not streams.deaf():
                raise
            streams.end_unheard()
    streams.drop()
    sys.exit(code)


def run(tokens: Sequence[str]) -> int:
    """Run a command and say how it ended.

    Raises:
        Exception: something that is nobody's mistake but ours, or of the code of a recipe.
    """
    try:
        ended = app(list(completed(tokens)), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        say(f"{_one_line(error)} (purerun --help lists what there is)")
        return MISTAKE
    except (KeyboardInterrupt, Terminated) as error:
        say("stopped; there was nothing to save")
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except Exception as error:
        if not (is_mistake(error) or is_misfortune(error)):
            raise
        say(told(error))
        return MISTAKE if is_mistake(error) else FAILED
    return DONE if ended is None else ended


def completed(tokens: Iterable[str]) -> Iterator[str]:
    """Say `last` after a `--resume` that names no checkpoint.

    The next word is a checkpoint unless it is an option or a recipe.

    >>> list(completed(["train", "--resume", "digits.py"])), list(completed(["train", "digits.py", "--resume"]))
    (['train', '--resume', 'last', 'digits.py'], ['train', 'digits.py', '--resume', 'last'])
    """
    for token, after in pairwise([*tokens, "--"]):
        yield token
        if token == "--resume" and (after.startswith("-") or after.endswith(".py")):
            yield "last"


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split()).removesuffix(".")


def _show(usual: Callable[..., None], message: Warning | str, category: type[Warning], *more: Any) -> None:
    """Show a warning; one of ours without the line that has raised it, which says nothing to a user."""
    if category.__module__.startswith("purerun."):
        say(" ".join(str(message).split()))
    else:
        usual(message, category, *more)


def _terminate(*_: object) -> NoReturn:
    raise Terminated
