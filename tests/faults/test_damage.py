"""Damage on the disk between a kill and the resume: said loudly, an older checkpoint taken, the same end."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Start, Whole
from tests.faults.runs import Run

STATE, MANIFEST = "state.safetensors", "manifest.json"


@pytest.fixture
def killed(start: Start, tmp_path: Path) -> Run:
    """A run that was killed, with checkpoints of the iterations 18, 20 and 22, and of the best so far."""
    command, run = start(env={"HOLD_AT": "23"}), Run(tmp_path / "run")
    command.held()
    assert command.until(lambda: run.stands(8, 18, 20, 22))
    command.send(signal.SIGKILL)
    assert -signal.SIGKILL == command.code
    return run


def cut(file: Path) -> None:
    """Lose the last byte."""
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def empty(file: Path) -> None:
    """Lose all of it, as file systems do that write names first."""
    file.write_bytes(b"")


def lose(file: Path) -> None:
    """Lose even the name."""
    file.unlink()


@pytest.mark.parametrize("harm", [cut, flip, empty, lose])
@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_a_damaged_checkpoint_is_named_and_passed_over(start: Start, whole: Whole, killed: Run, name: str, harm):
    """With the file that is wrong; the one before it is taken."""
    harm(killed.published[22] / name)
    resumed = start("--resume")

    whole.same(killed, resumed)
    rejected, taken = resumed.notes[:2]
    assert "iter_00000022" in rejected
    assert name in rejected
    assert "going on from run/checkpoints/iter_00000020" == taken


def test_of_several_damaged_ones_each_is_named(start: Start, whole: Whole, killed: Run):
    """The newest first."""
    flip(killed.published[22] / STATE)
    cut(killed.published[20] / MANIFEST)
    resumed = start("--resume")

    whole.same(killed, resumed)
    first, second, taken = resumed.notes[:3]
    assert "iter_00000022" in first
    assert "iter_00000020" in second
    assert "going on from run/checkpoints/iter_00000018" == taken


def test_a_lost_checkpoint_is_passed_over(start: Start, whole: Whole, killed: Run):
    """The pointer names what is no longer there."""
    shutil.rmtree(killed.published[22])
    resumed = start("--resume")

    whole.same(killed, resumed)
    assert "going on from run/checkpoints/iter_00000020" in resumed.err


def test_a_damaged_pointer_is_named_and_passed_over(start: Start, whole: Whole, killed: Run):
    """The newest one is taken."""
    (killed.folder / "last").write_bytes(b"\0\0\0")
    resumed = start("--resume")

    whole.same(killed, resumed)
    assert "checkpoints/last: expected a name" in resumed.err
    assert "going on from run/checkpoints/iter_00000022" in resumed.err


def test_if_all_are_damaged_nothing_is_touched(start: Start, killed: Run):
    """One clear line; what is left may still be of use to somebody."""
    for path in killed.published.values():
        flip(path / STATE)
    before = {file: file.read_bytes() for file in killed.directory.rglob("*") if file.is_file()}
    refused = start("--resume")

    assert (2, "") == (refused.code, refused.out)
    assert all(path.name in refused.err for path in killed.published.values())
    assert "Traceback" not in refused.err
    assert before == {file: file.read_bytes() for file in killed.directory.rglob("*") if file.is_file()}


def test_a_damaged_log_is_said(start: Start, whole: Whole, killed: Run):
    """Its lines are lost, the run is not: the digests are the same."""
    log = killed.directory / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-3]))
    resumed = start("--resume")

    assert (0, whole.out) == (resumed.code, resumed.out)
    assert "bytes of log, found" in resumed.err
    assert [line for line in whole.run.log if line["iter"] > 22] == [line for line in killed.log if line["iter"] > 22]
    whole.good(killed)
