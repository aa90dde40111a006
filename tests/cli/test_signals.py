"""The flag that signals set."""

from __future__ import annotations

import os
import signal

import pytest

from purerun.cli.signals import Stop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_sets_the_flag_and_nothing_else(number, code, capfd):
    """Whoever runs inside goes on until it asks."""
    with Stop() as stop:
        before = stop(), stop.code
        signal.raise_signal(number)
        after = stop(), stop.code

    assert (False, 0) == before
    assert (True, code) == after
    assert "stopping after this iteration" in capfd.readouterr().err


def test_handlers_are_put_back():
    """Also when the block fails."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), Stop():
        1 / 0  # noqa: B018

    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_forked_process_ends_by_a_signal():
    """It has inherited the handler, but nobody in it reads the flag."""
    with Stop() as stop:
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)

    assert 143 == os.waitstatus_to_exitcode(status)
    assert not stop()
