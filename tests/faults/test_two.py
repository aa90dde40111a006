"""Two processes and one directory: the second one is sent away, until the first one is dead."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Start, Whole
from tests.faults.runs import Run


@pytest.mark.parametrize("how", ["--resume", "--overwrite"])
def test_a_second_process_is_sent_away(start: Start, whole: Whole, tmp_path: Path, how: str):
    """With nothing of the first one's touched; when that is killed, workers that outlive it do not keep the place."""
    run, beside = Run(tmp_path / "run"), tmp_path / "beside"
    first = start("--set", "train.workers=2", env={"HOLD_AT": "9"})
    first.held()
    assert first.until(lambda: run.stands(4, 6, 8))
    before = (run.log, run.recipe, run.pointers)
    beside.mkdir()
    (beside / "run").symlink_to(run.directory)
    second = start(how, "--set", "log=1 iters", folder=beside)

    assert (2, "") == (second.code, second.out), second.err
    assert "run is in use: another process trains a run there" in second.notes[-1]
    assert "Traceback" not in second.err
    assert before == (run.log, run.recipe, run.pointers)
    assert run.stands(4, 6, 8)
    first.send(signal.SIGKILL)
    assert -signal.SIGKILL == first.code
    whole.same(run, start("--resume", folder=beside))
