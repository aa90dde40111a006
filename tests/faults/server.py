"""A process that has imported everything once, and forks a child for each command.

Importing torch takes seconds, a fork milliseconds.  It reads a JSON object a line, `{"start": {...}}` or
`{"wait": pid}`, and answers with a number a line: the id of a child, or how one ended (its exit code, or minus the
signal that killed it).  A child leads a session of its own, and runs `purerun.cli.main` as `python -m purerun` does.
At SIGUSR2 it says what its threads are doing.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import os
import resource
import signal

import purerun.recipe
import purerun.testing  # noqa: F401 - for the children
from purerun.cli import main


def serve() -> list[str]:
    """Answer until there are no more requests; in a child, return the words of its command."""
    # Not sys.stdin: what that has read ahead would be the child's too.
    with os.fdopen(os.dup(0), "rb", buffering=0) as requests:
        while line := requests.readline():
            request = json.loads(line)
            if "wait" in request:
                _, status = os.waitpid(request["wait"], 0)
                answer(os.waitstatus_to_exitcode(status))
                continue
            child = os.fork()
            if not child:
                return become(**request["start"])
            answer(child)
    os._exit(0)


def answer(number: int) -> None:
    """Write one number, at once."""
    os.write(1, f"{number}\n".encode())


def become(words: list[str], folder: str, env: dict[str, str], largest: int | None, obedient: bool) -> list[str]:
    """Make this process the one in which a command runs.

    Args:
        words: those of the command.
        folder: where it runs; what it writes to the two streams goes into the files `out` and `err` there.
        env: variables that it has beside those of the server.
        largest: how many bytes a file that it writes may have; None for any number.
        obedient: whether it obeys the permissions of files, as root else does not.
    """
    os.setsid()
    os.chdir(folder)
    os.environ.update(env)
    redirect(0, os.devnull, os.O_RDONLY)
    redirect(1, "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    redirect(2, "err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if obedient:
        drop_capabilities()
    return words


def redirect(place: int, path: str, flags: int) -> None:
    """Let a descriptor stand for a file."""
    handle = os.open(path, flags, 0o644)
    os.dup2(handle, place)
    os.close(handle)


def drop_capabilities() -> None:
    """Give up all privileges of root; the user id stays."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the structures, this process
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    gc.freeze()  # or each child would walk through, and so copy, all that has been imported
    main(serve())
