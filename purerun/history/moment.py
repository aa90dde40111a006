"""A past moment of a run: its state, with all that a run which goes on from there must know."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import attrs

from purerun.checkpoint import JSON, Manifest, load, path_of, read_manifest
from purerun.checkpoint.error import reading, writing
from purerun.checkpoint.publish import sync
from purerun.history.error import HistoryError
from purerun.history.replay import begun, final, going_on
from purerun.history.stretches import Stretch, in_force, stretches
from purerun.history.timeline import Point, Timeline
from purerun.recipe import Recipe, resolved
from purerun.recipe.place import LOG
from purerun.sinks import Checkpoint, Log, watch
from purerun.sinks.lines import Mark
from purerun.state import State

_CLOCKS = ("time", "data_time", "eta", "timestamp", "memory")
_LABEL = Log(path=Path(LOG)).label


@attrs.frozen
class Moment:
    """A state of a run, and what stands beside it in a manifest.

    Attributes:
        state: the state.
        recipe: the recipe in force, as data.
        parent: the digest of the checkpoint before it.
        changes: how the recipe was changed before.
        memory: what the sinks of the run remember; of the log, how long it was.
        here: whether there is a good checkpoint of it already.
    """

    state: State = attrs.field(repr=False)
    recipe: Any
    parent: str | None
    changes: tuple[dict[str, Any], ...]
    memory: dict[str, JSON]
    here: bool

    @property
    def logged(self) -> int:
        """How many bytes the log of the run had."""
        return _logged(self.memory)


def moment(line: Timeline, recipe: Recipe, iter: int, scratch: Path) -> Moment:
    """Go back to an iteration: read its checkpoint, or go on from the last one before it until there.

    Args:
        line: of the run.
        recipe: of its recipe file; what the run had set otherwise is set again.
        iter: the iteration; the first one is 1.
        scratch: a folder that is made for the work, and removed.

    Raises:
        HistoryError: the run has not come so far, another recipe made it, or its log is not the one that
            the recipe gives.
        RecipeError: another program made it.
        SaveError: nothing can be written there.
    """
    to = line.after(iter)
    point, state = line.before(iter)
    if point is not None and state is not None and point.iter == iter:
        manifest = point.manifest
        in_force(manifest)  # refuses a run without a recipe
        return Moment(state, manifest.recipe, manifest.parent, tuple(manifest.changes), manifest.memory, here=True)
    with _folder(scratch):
        ways = stretches(point, to, iter)
        copy_log(line.run, scratch, 0 if point is None else _logged(point.manifest.memory))
        made = _made(recipe, ways, point, state, scratch)
        manifest = read_manifest(made)
        return Moment(
            state=load(made),
            recipe=manifest.recipe,
            parent=None if point is None else point.manifest.digest,
            changes=tuple(change for change in to.manifest.changes if change["iter"] < iter),
            memory=_translated(manifest, line.run, scratch),
            here=False,
        )


def copy_log(run: Path, directory: Path, size: int) -> None:
    """Begin a log as that of a run began.

    Args:
        run: the directory of the run.
        directory: of the other log.
        size: how much of it, in bytes.

    Raises:
        HistoryError: the log of the run is shorter.
        CheckpointError: it cannot be read.
        SaveError: the other one cannot be written.
    """
    text = b"".join(_lines(run, size))
    if len(text) < size:
        raise HistoryError(f"{run / LOG}: expected {size} bytes of log, found {len(text)}; bring the file back")
    file = directory / LOG
    with writing(file):
        file.write_bytes(text)
        sync(file)


@contextmanager
def _folder(place: Path) -> Iterator[None]:
    """Have an empty folder for as long as the block lasts."""
    shutil.rmtree(place, ignore_errors=True)
    try:
        with writing(place):
            place.mkdir(parents=True)
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _made(recipe: Recipe, ways: Sequence[Stretch], point: Point | None, state: State | None, scratch: Path) -> Path:
    """Let the run go on in the scratch folder, with the sinks that have a memory; say where its last checkpoint is."""
    at = None if point is None else point.path
    for way in ways:
        value, module, state = begun(recipe, way, state)
        if int(state["iter"]) == way.stop:
            continue
        sinks = (
            Log(value.log, scratch / LOG, console=False),
            Checkpoint(scratch, every="last", recipe=resolved(value)),
        )
        with closing(watch(going_on(value, module, way, state), *sinks, resume=at)) as states:
            state = final(states)
        if int(state["iter"]) != way.stop:
            raise HistoryError(
                f"expected an iteration that a state was made at, got {way.stop}: the steps of this recipe take turns "
                f"on one batch, and the next state is that of iteration {int(state['iter'])}; ask for that one"
            )
        at = path_of(scratch, way.stop)
    assert at is not None
    return at


def _translated(manifest: Manifest, run: Path, scratch: Path) -> dict[str, JSON]:
    """Say the length of the log at this moment in the bytes of the run's own: its clocks took other room."""
    again = _lines(scratch, _logged(manifest.memory))
    real = _lines(run)[: len(again)]
    for place, (mine, theirs) in enumerate(zip_longest(again, real, fillvalue=b""), 1):
        if _timeless(mine) != _timeless(theirs):
            raise HistoryError(
                f"{run / LOG}: expected line {place} to be what the run gives when it is computed again, "
                f"got {theirs.decode(errors='replace').strip() or 'nothing'}; "
                "was it changed, or the recipe, or the machine?"
            )
    log: Any = manifest.memory[_LABEL]
    return {**manifest.memory, _LABEL: {**log, **attrs.asdict(Mark.of(b"".join(real)))}}


def _lines(directory: Path, size: int | None = None) -> list[bytes]:
    """Read the lines of a log, as far as its first bytes reach."""
    file = directory / LOG
    with reading(file):
        return file.read_bytes()[:size].splitlines(keepends=True) if file.is_file() else []


def _timeless(line: bytes) -> Any:
    """Read a line of a log without what clocks say; None for no line of one."""
    try:
        return {name: value for name, value in json.loads(line).items() if name not in _CLOCKS}
    except (ValueError, AttributeError):
        return None


def _logged(memory: dict[str, JSON]) -> int:
    """Say how long the log of a run was, in bytes."""
    known = memory.get(_LABEL)
    return int(known["bytes"]) if isinstance(known, dict) else 0
