"""The packaged runner: a recipe trained in a run directory, or judged on its test data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from purerun import processes
from purerun.checkpoint import load, names, path_of_name
from purerun.recipe.error import RecipeError
from purerun.recipe.place import LAST, LOG, holds_run, spare, write_recipe
from purerun.recipe.recipe import Recipe
from purerun.recipe.resolved import resolved
from purerun.recipe.start import Start, again, latest, placed
from purerun.recipe.weights import Weights, anew, same_weights
from purerun.sinks import Checkpoint, Log, Progress, Sink, Watched, watch
from purerun.sinks.desk import Desk, Watcher, belongs
from purerun.sinks.lines import written
from purerun.state import State


@attrs.frozen
class Outcome:
    """How a run ended.

    Attributes:
        state: its last state.
        finished: whether it came to its end, and was not stopped before.
        resumed: whether it went on from a checkpoint.
    """

    state: State
    finished: bool
    resumed: bool


def train(
    recipe: Recipe,
    directory: str | Path,
    *,
    resume: str | Path | None = None,
    weights: Weights | str | Path | None = None,
    asked: Sequence[str] = (),
    overwrite: bool = False,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda note: None,
) -> Outcome:
    """Train a recipe, with its log, its checkpoints and a progress bar.

    Args:
        recipe: the run.
        directory: where its files go.
        resume: go on from this checkpoint; "last" is the newest good one of the directory, if
            it has any.
        weights: begin with these weights: a path or a URL, or `Weights` to say how they are taken.
        asked: paths of the recipe that may differ from those of the run that is gone on with.
        overwrite: replace a run that is in the directory.
        stop: asked after each iteration; the run then ends there, and is saved.
        say: told what a person may want to know.

    Raises:
        RecipeError: the directory holds a run, another recipe made the checkpoint, or that is of another run which is
            over.
        CheckpointError: a checkpoint cannot be read or written.
        SinkError: another process trains in the directory.

    >>> import tempfile
    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=2,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     outcome = train(recipe, folder)
    >>> int(outcome.state["iter"]), outcome.finished
    (4, True)
    """
    recipe, directory = recipe.here(), Path(directory)
    if holds_run(directory) and not overwrite:
        spare(directory, resume)
    with threads(recipe.threads):
        module = recipe.module()
        start = _start(recipe, module, directory, resume, weights, asked)
        # Of a run that is over only what a kill has left undone is done: the last line of its log, say.
        over = start.state if recipe.ended(start.state) else None
        if over is not None and start.checkpoint is not None:
            over = load(start.checkpoint)  # as it is: what was asked to change is not in force
        if over is not None and not belongs(start.checkpoint, directory):
            raise RecipeError(
                f"{start.checkpoint} is of a run that is over, and nothing is left to be done in {directory}; make the "
                "run longer (--set), or take the checkpoint itself"
            )
        for note in start.notes:
            say(note)
        resumed = start.checkpoint is not None
        if over is not None and not _is_newest(start.checkpoint, directory):
            return Outcome(over, finished=True, resumed=resumed)  # what came after it stays
        if processes.count() > 1 and recipe.train_step(module).share is None:
            raise RecipeError(
                "expected a recipe whose batches are divided between processes, got another in a run of "
                f"{processes.count()}; give it wrappers=[pr.DataParallel(shards={processes.count()})], or start one"
            )
        processes.wait()  # until all have looked at what is there, before the first of them writes
        states = _watched(recipe, module, directory, start, overwrite=overwrite)
        del start  # or its state would live, and its memory be taken, as long as the run
        state = _last(states, processes.agreed(stop), over)
        return Outcome(state, finished=recipe.ended(state), resumed=resumed)


def test(recipe: Recipe, state: State) -> dict[str, Tensor]:
    """Judge a state on the test data of a recipe: name -> score.

    Raises:
        RecipeError: the recipe has no test data.
        StateError: the state is of another model.
    """
    if recipe.test is None:
        raise RecipeError("expected a recipe with test data, got test=None; give it test=pr.Loader(...)")
    with threads(recipe.threads):
        module = recipe.module()
        fresh = recipe.train_step(module).init(recipe.seed)
        same_weights(fresh, state, "the checkpoint")
        return recipe.val_loop(module)(placed(state, fresh), recipe.test)


def _start(
    recipe: Recipe,
    module: nn.Module,
    directory: Path,
    resume: str | Path | None,
    weights: Weights | str | Path | None,
    asked: Sequence[str],
) -> Start:
    step = recipe.train_step(module)
    if resume is not None and resume != LAST:
        return _told(again(recipe, step, Path(resume), asked=asked))
    found = latest(directory) if resume else None
    if found is not None:
        return _told(again(recipe, step, found.path, asked=asked, state=found.content), found.rejected)
    start = anew(recipe, step, module, weights=Weights.of(weights) if weights else None)
    if resume:
        begun = written(directory / LOG).count(b"\n")
        lines = f"; the {begun} lines of its log are begun anew" if begun else ""
        note = f"{directory} has no checkpoint yet; starting from the beginning{lines}"
        return attrs.evolve(start, notes=(note, *start.notes))
    return start


def _told(start: Start, rejected: Sequence[str] = ()) -> Start:
    """Say first which checkpoints are not believed, then where the run goes on."""
    refused = tuple(f"REJECTED {line}" for line in rejected)
    return attrs.evolve(start, notes=(*refused, f"going on from {start.checkpoint}", *start.notes))


def _watched(recipe: Recipe, module: nn.Module, directory: Path, start: Start, *, overwrite: bool) -> Watched:
    """Make the states of a run, with everything that watches them."""
    return watch(
        recipe.train_loop(module, lease=True)(start.state, recipe.train),
        *_sinks(recipe, directory, start),
        resume=start.checkpoint,
        overwrite=overwrite or start.checkpoint is None,
    )


@attrs.frozen
class _Recipe(Sink):
    """Writes the recipe down when a run begins or goes on: once its directory is its own."""

    recipe: Recipe
    directory: Path

    def open(self, desk: Desk) -> Watcher:
        return _Writing(self)


class _Writing(Watcher):
    def __init__(self, sink: _Recipe) -> None:
        self._sink = sink

    def begin(self, state: State) -> None:
        write_recipe(self._sink.recipe, self._sink.directory)

    def see(self, state: State) -> None:
        pass


def _is_newest(checkpoint: Path | None, directory: Path) -> bool:
    """Say whether a checkpoint is the newest one of the run in a directory."""
    known = names(directory)
    if checkpoint is None or not known:
        return False
    return path_of_name(directory, known[-1]).resolve() == Path(checkpoint).resolve()


def _last(states: Watched, stop: Callable[[], bool], state: State | None) -> State:
    """Run through states until they end, or until it is time to stop; the sinks are closed then.

    Args:
        states: the run.
        stop: asked after each one.
        state: the last one, for a run that is over.
    """
    with closing(states):
        for each in states:
            state = each
            if stop():
                break
    assert state is not None  # a run that is not over has a next state
    return state


def _sinks(recipe: Recipe, directory: Path, start: Start) -> tuple[Sink, ...]:
    total = f"{recipe.iters} iters" if recipe.epochs is None else f"{recipe.epochs} epochs"
    return (
        Log(recipe.log, directory / LOG, total=total, on_error=recipe.on_save_error),
        Progress(total),
        _Recipe(recipe, directory),
        Checkpoint(
            directory,
            every=recipe.checkpoint,
            keep=recipe.keep,
            best=recipe.bests,
            publish=recipe.publish,
            on_error=recipe.on_save_error,
            recipe=resolved(recipe),
            changes=start.changes,
        ),
    )


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
