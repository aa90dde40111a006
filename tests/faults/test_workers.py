"""Processes that make the batches: their number changes nothing, and they do not outlive the run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.chain import Chain
from tests.faults.commands import Command
from tests.faults.conftest import Start, Whole


@pytest.mark.parametrize("kill", [Command.send, Command.send_all])
def test_their_number_may_change_within_an_epoch(start: Start, whole: Whole, tmp_path: Path, kill):
    """None, two that are really there, and none again; each time the run is killed, with its workers or without."""
    chain = Chain(start, whole, tmp_path)
    assert chain.strike("--set", "train.workers=0", env={"DIE_AT": "18"})

    held = start("--resume", "--set", "train.workers=2", env={"HOLD_AT": "25"})
    held.held()
    assert 3 == len(held.group)
    kill(held, signal.SIGKILL)

    assert -signal.SIGKILL == held.code
    # Nobody waits for the two: if they were not killed too, they still live when the run goes on.
    chain.finish("--set", "train.workers=0")
    assert held.emptied()
