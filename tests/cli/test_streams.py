"""What becomes of a command when nobody reads what it writes, or nothing can be written."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from purerun.checkpoint.publish import write_text
from purerun.cli.exits import is_misfortune, told


@pytest.fixture
def unread():
    """The end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_a_command_whose_reader_is_gone_dies_without_a_word(start, unread):
    """By the signal that ends other programs then; also when it has something to complain of."""
    results = start("show", "tiny.py", stdout=unread)
    complaint = start("show", "nowhere", stderr=unread)

    assert ("", -signal.SIGPIPE) == (results.communicate()[1], results.returncode)
    assert ("", -signal.SIGPIPE) == (complaint.communicate()[0], complaint.returncode)


@pytest.mark.skipif(sys.platform != "linux", reason="others have no /dev/full")
def test_results_that_cannot_be_written_are_a_failure(start):
    """Whoever reads them must not take a part of them for all."""
    with Path("/dev/full").open("w") as full:
        ended = [start(*words, stdout=full) for words in (("show", "tiny.py"), ("--help",))]

        for process in ended:
            assert (
                "purerun: cannot be read or written: No space left on device; look who may do so, and whether "
                in (process.communicate()[1])
            )
            assert 1 == process.returncode


def test_closed_streams_are_no_error(start):
    """As of a job that nobody watches."""
    process = start("--version", stdout=None, stderr=None, preexec_fn=lambda: (os.close(1), os.close(2)))

    assert 0 == process.wait(60)


def test_what_the_system_refuses_is_told_in_one_line():
    """By whatever part of Python's library it was asked; a process that helped and has died is another matter."""
    with pytest.raises(OSError, match="nowhere") as caught:
        write_text(Path("nowhere/a"), "")

    assert is_misfortune(caught.value)
    assert told(caught.value).startswith("nowhere/.a.new: cannot be read or written: No such file or directory; look")
    assert not is_misfortune(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))


def test_what_the_code_of_a_recipe_cannot_open_keeps_its_traceback(command, recipe):
    """Its author must know where it was asked for."""
    file = Path(recipe)
    file.write_text(file.read_text().replace("time.sleep(wait)", "open('nowhere')"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        command("train", recipe)


def test_names_do_not_steer_the_terminal(command):
    """Whatever somebody has called a file, a message is one line of plain text."""
    code, _, err = command("verify", "a\nb\x1b[31m")

    assert (2, 1) == (code, len(err.splitlines()))
    assert "\x1b" not in err
    assert r"\x1b[31m" in err
