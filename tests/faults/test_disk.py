"""A disk that refuses: said in one line, nothing good is lost, and once it takes files again the run ends as ever."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.faults.commands import Command
from tests.faults.conftest import Start, Whole
from tests.faults.runs import Run, listed

WARN = ("--set", "on_save_error=warn")
MB = 2**20  # bytes; a state has four


@attrs.frozen
class Small:
    """A disk of its own for a run, of which a test takes room and gives it back."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def leave(self, room: int) -> None:
        """Take all room but so many bytes."""
        self._ballast.write_bytes(bytes(shutil.disk_usage(self.folder).free - room))

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    """Mount such a disk, where that is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
    yield Small(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


def failed(command: Command, *words: str) -> None:
    """Check that it failed, and said why in its last line, without a traceback."""
    assert (1, "") == (command.code, command.out), command.err
    assert "Traceback" not in command.err
    assert command.err.splitlines()[-1] == f"purerun: {command.notes[-1]}"
    assert [] == [word for word in words if word not in command.notes[-1]]


@pytest.mark.parametrize("largest", [10_000, 1 * MB])
def test_no_state_can_be_written(start: Start, whole: Whole, tmp_path: Path, largest: int):
    """A limit to the size of files below that of a state: nothing half made stays."""
    run = Run(tmp_path / "run")
    failed(start(largest=largest), "cannot be written")

    assert {} == run.published
    assert set() == run.unfinished
    whole.same(run, start("--resume"))


def test_the_recipe_cannot_be_written(start: Start, tmp_path: Path):
    """A limit below its size: it is a disk that refuses, no mistake."""
    failed(start(largest=100), "recipe.toml", "cannot be written")

    assert ["log.jsonl"] == listed(tmp_path / "run")


def test_a_directory_that_cannot_be_written(start: Start, tmp_path: Path):
    """Read-only from the beginning."""
    (tmp_path / "run").mkdir(mode=0o555)
    failed(start(obedient=True), "log.jsonl", "Permission denied")

    assert [] == listed(tmp_path / "run")


def test_a_run_that_is_over_needs_no_disk(start: Start, tmp_path: Path):
    """Read-only afterwards: gone on with, it has nothing to do, and prints its result again."""
    run = Run(tmp_path / "run")
    first = start("--set", "epochs=1")
    ended = first.code, first.out
    for path in (run.directory / "log.jsonl", run.directory / "recipe.toml", run.folder, run.directory):
        path.chmod(0o555)
    second = start("--resume", "--set", "epochs=1", obedient=True)

    assert 0 == ended[0]
    assert ended == (second.code, second.out), second.err


def test_no_line_of_the_log_can_be_written(start: Start, tmp_path: Path):
    """States are small enough for the limit, the log grows beyond it."""
    words = ("--set", "model.idle=1", "--set", "log=1 iters", "--set", "epochs=5")
    unlimited = start(*words, folder=tmp_path / "unlimited")
    assert 0 == unlimited.code
    expected, run = Run(tmp_path / "unlimited" / "run"), Run(tmp_path / "run")
    failed(start(*words, largest=16_000), "log.jsonl", "cannot be written")
    before = run.newest()
    resumed = start("--resume", *words)

    assert before > 0
    assert (0, unlimited.out) == (resumed.code, resumed.out)
    assert expected.log == run.log


def test_a_disk_that_fills_up(start: Start, whole: Whole, small: Small):
    """Room for two states more: these are saved, a third one is not, nor any while the disk is full."""
    run = Run(small.folder / "run")
    first = start("--set", "keep=20", folder=small.folder, env={"HOLD_AT": "9"})
    first.held()
    assert first.until(lambda: run.stands(2, 4, 6, 8))
    small.leave(9 * MB)
    first.let_go()
    failed(first, "iter_00000014", "No space left")
    assert run.stands(2, 4, 6, 8, 10, 12)
    again = start("--resume", "--set", "keep=20", folder=small.folder)
    failed(again, "No space left")

    assert run.stands(2, 4, 6, 8, 10, 12)
    whole.good(run)
    small.free()
    whole.same(run, start("--resume", folder=small.folder))


def test_old_ones_make_room(start: Start, whole: Whole, small: Small):
    """Room for two states more: once these are saved, others are removed, and there is room for the next."""
    run = Run(small.folder / "run")
    command = start(folder=small.folder, env={"HOLD_AT": "9"})
    command.held()
    assert command.until(lambda: run.stands(4, 6, 8))
    small.leave(9 * MB)
    command.let_go()

    whole.same(run, command)


def test_a_folder_that_cannot_be_written(start: Start, whole: Whole, tmp_path: Path):
    """Read-only from the middle of a run on, by permissions that even root obeys here."""
    run = Run(tmp_path / "run")
    command = start(obedient=True, env={"HOLD_AT": "9"})
    command.held()
    assert command.until(lambda: run.stands(4, 6, 8))
    run.folder.chmod(0o555)
    command.let_go()
    failed(command, "Permission denied")

    assert run.stands(4, 6, 8)
    whole.good(run)
    run.folder.chmod(0o755)
    whole.same(run, start("--resume"))


def test_a_run_that_may_go_on_without_its_checkpoints(start: Start, whole: Whole, tmp_path: Path):
    """Read-only for a while: each that cannot be written is told, and the end is saved."""
    run = Run(tmp_path / "run")
    command = start(*WARN, obedient=True, env={"HOLD_AT": "9,15,17"})
    command.held()
    assert command.until(lambda: run.stands(4, 6, 8))
    run.folder.chmod(0o555)
    command.let_go()
    command.held()
    time.sleep(0.5)  # for the writer, whose failures are told by the iterations after them
    command.let_go()
    command.held()
    assert command.until(lambda: "iter_00000010: cannot be written" in command.err)
    assert run.stands(4, 6, 8)
    run.folder.chmod(0o755)
    command.let_go()

    whole.same(run, command)
    assert "the run goes on" in command.err


def test_a_run_without_any_checkpoint_fails_in_the_end(start: Start, whole: Whole, tmp_path: Path):
    """It may go on without them, but a last state that cannot be saved is lost."""
    run = Run(tmp_path / "run")
    failed(start(*WARN, largest=1 * MB), "iter_00000045", "cannot be written")

    assert {} == run.published
    assert whole.run.log == run.log
    whole.same(run, start("--resume"))


def test_a_run_whose_directory_is_removed_says_so(start: Start, whole: Whole, tmp_path: Path):
    """It is not made anew, without its log: what is left would look like a whole run."""
    run = Run(tmp_path / "run")
    command = start(env={"HOLD_AT": "9"})
    command.held()
    assert command.until(lambda: run.stands(4, 6, 8))
    shutil.rmtree(run.directory)
    command.let_go()
    failed(command, "run/log.jsonl", "No such file")

    assert not run.directory.exists()
    whole.same(run, start("--resume"))
