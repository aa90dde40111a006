"""The server, the run in one go that all others must equal, and commands that train it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

import purerun as pr
from purerun.recipe import load
from tests.faults.commands import Command, Server, afresh
from tests.faults.runs import Run

collect_ignore_glob = [] if sys.platform == "linux" else ["*"]  # others have no pidfd, /proc or capabilities
pytest.register_assert_rewrite("tests.faults.chain")

RECIPE = Path(__file__).with_name("everything.py")

Start = Callable[..., Command]


@attrs.frozen
class Whole:
    """The run that nothing interrupted.

    Attributes:
        run: its directory.
        out: what the command printed.
        digests: those of its states: iteration -> digest.
    """

    run: Run
    out: str
    digests: dict[int, str]

    def same(self, run: Run, command: Command) -> None:
        """Check that another run came to the same end, with a command that had nothing to complain of."""
        assert 0 == command.code, command.err
        assert self.out == command.out
        assert self.run.log == run.log
        assert self.run.pointers == run.pointers
        self.good(run)

    def good(self, run: Run) -> None:
        """Check that every checkpoint that stands under its own name can be read, and holds the right state."""
        found = {iteration: pr.digest(pr.load(path)) for iteration, path in run.published.items()}

        assert {iteration: self.digests[iteration] for iteration in found} == found


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for all tests of this process."""
    with contextlib.closing(Server()) as found:
        yield found


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Start]:
    """Start to train the recipe, in a folder of the test's own."""
    started: list[Command] = []

    def begun(
        *words: object, folder: Path = tmp_path, env: dict[str, str] | None = None, fresh: bool = False, **more: object
    ) -> Command:
        how = afresh if fresh else server.start
        folder.mkdir(exist_ok=True)
        for left in ("held", "go"):
            (folder / left).unlink(missing_ok=True)
        command = how("train", RECIPE, "--work-dir", "run", *words, folder=folder, env=env or {}, **more)
        started.append(command)
        return command

    yield begun
    for command in started:
        command.abandon()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run in one go, by a process that did nothing else; and its states, by a loop without sinks."""
    folder = tmp_path_factory.mktemp("whole")
    command = afresh("train", RECIPE, "--work-dir", "run", folder=folder, env={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        recipe = load(RECIPE)
        sys.modules.pop("recipe_everything")
    module = recipe.module()
    states = recipe.train_loop(module)(recipe.init(module), recipe.train)
    digests = {int(state["iter"]): pr.digest(state) for state in states}

    assert 0 == command.code, command.err
    return Whole(Run(folder / "run"), command.out, digests)
