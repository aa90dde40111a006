"""Checkpoints of a run: handed to a thread that writes when they are due, and when the run ends."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal

import attrs

from purerun.checkpoint import (
    JSON,
    Best,
    SaveError,
    Writer,
    bests,
    encoded,
    has_scheme,
    name_of,
    names,
    path_of,
    path_of_name,
    point,
    pointers,
    prune,
    publish_weights,
    remove,
    save,
    sweep,
    unpoint,
)
from purerun.checkpoint.error import reading
from purerun.checkpoint.manifest import MANIFEST
from purerun.checkpoint.retention import scores_of
from purerun.evaluate import averages
from purerun.hooks.scores import grouped, judged
from purerun.loan import collect
from purerun.population import members, spread
from purerun.sinks.desk import Desk, SinkError, Watcher, belongs
from purerun.sinks.due import Due, due
from purerun.sinks.job import Job
from purerun.sinks.sink import Sink
from purerun.state import StaleState, State, peek
from purerun.valid import one_of


class NotSaved(UserWarning):
    """A checkpoint could not be written, and the run goes on without it."""


def _directory(given: str | os.PathLike[str]) -> Path:
    if has_scheme(given):
        raise ValueError(
            f"expected a directory of this machine for the run, got {given}; give its path, and save single "
            "checkpoints elsewhere: pr.save(state, URL)"
        )
    return Path(given)


@attrs.frozen
class Checkpoint(Sink):
    """Save states into `DIRECTORY/checkpoints/iter_00000500/`, and keep `DIRECTORY/checkpoints/last`.

    A state is handed to one thread, which writes it while the run goes on: states are values, and what
    the run writes into the next one does not reach it.  Two may be in its hands; a third one waits.

    A run that goes on from one of its own checkpoints gives up those after it: they are removed
    when its first new state is there, as the lines of its log are.

    Attributes:
        directory: of the run, on this machine.
        every: when to save: "1 epoch", "500 iters", "10 minutes", "last", a `When`, or several of these.
        keep: how many to keep, the newest; None for all.  The one that `last` names stays.
        best: scores whose best checkpoint is kept too, each named by `checkpoints/best_SCORE`: a state is
            saved whenever a validation of it is the best so far.  A name, a `Best`, or several.
        last: save the last state too, when the run ends, is left or fails, as far as that state is whole.
        publish: at the run's end, write plain weights beside the checkpoints, of the best one (else the last):
            "params" for the trained weights, "ema" for their average, "" for none.  The file is named as the directory.
        on_error: what to do when a checkpoint cannot be written: "stop" the run with a SaveError, or "warn"
            and go on.  A last state that cannot be saved is an error in any case.
        recipe: the run as plain data, for the manifests.
        changes: how the recipe was changed on the way, for the manifests.
    """

    keeps = True

    directory: Path = attrs.field(converter=_directory)
    every: Due = attrs.field(default="1 epoch", kw_only=True, converter=due)
    keep: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    best: tuple[Best, ...] = attrs.field(default=(), kw_only=True, converter=bests)
    last: bool = attrs.field(default=True, kw_only=True)
    publish: str = attrs.field(default="", kw_only=True, validator=attrs.validators.instance_of(str))
    on_error: Literal["stop", "warn"] = attrs.field(default="stop", kw_only=True, validator=one_of("stop", "warn"))
    recipe: JSON = attrs.field(default=None, kw_only=True, repr=False)
    changes: tuple[Mapping[str, JSON], ...] = attrs.field(default=(), kw_only=True, converter=tuple, repr=False)

    @property
    def place(self) -> Path:
        """The directory of the run."""
        return self.directory

    def open(self, desk: Desk) -> Watcher:
        """Begin to save.

        Raises:
            SinkError: the directory holds another run's checkpoints.
        """
        _refuse_others(self.directory, desk)
        return _Saving(self, desk)


class _Saving(Watcher):
    def __init__(self, sink: Checkpoint, desk: Desk) -> None:
        self._sink, self._desk, self._writer = sink, desk, Writer()
        known = names(sink.directory) if sink.best and belongs(desk.resumed, sink.directory) else ()
        self._scores = {name: scores_of(sink.directory, name) for name in known}
        self._unsaved: State | None = None
        self._begun = False
        self._clock = perf_counter()
        self._counters: tuple[str, ...] = ()
        # The iterations of the newest state that was handed over, and of the newest that was written.
        self._wanted = self._written = -1
        # The digest of the last checkpoint.  This and `_written` belong to the writer's thread once it has begun.
        self._parent = None if desk.manifest is None else desk.manifest.digest

    def check(self, state: State) -> None:
        scores = spread(peek(state["scores"]), members(state)) if "scores" in state.names() else {}
        known, self._counters = list(scores), tuple(counter for counter in grouped(scores) if counter)
        for each in self._sink.best:
            if each.metric not in known:
                raise SinkError(f"expected best to be among the scores of this run, {known}, got {each.metric!r}")
        weights = ["params", *averages(state)]
        if self._sink.publish and members(state):
            raise SinkError(
                f"expected a single run to publish weights of, got a population of {members(state)}; leave publish "
                "out, and write those of one member: purerun export RUN OUT --member 0"
            )
        if self._sink.publish and self._sink.publish not in weights:
            raise SinkError(
                f"expected publish to be among the weights of this run, {weights}, got {self._sink.publish!r}"
            )

    def begin(self, state: State) -> None:
        self._begun = True
        if belongs(self._desk.resumed, self._sink.directory):
            self._cut()
        else:
            _vacate(self._sink.directory)

    def see(self, state: State) -> None:
        # Only the container: when a lease ends it is emptied, and holds nothing back.
        self._unsaved = state
        collect()
        self._look()
        if self._sink.every(state, perf_counter() - self._clock) or (self._sink.best and self._is_best(state)):
            self._hand_over(state)

    def close(self, error: BaseException | None) -> None:
        # Had the others seen more than this state, what they remember would not fit it.
        final = None if self._desk.torn or not self._sink.last else self._unsaved
        if final is not None and _whole(final):
            self._hand_over(final)
        self._writer.close()
        collect()
        self._look(ended=True)
        if error is not None:
            return
        if not self._begun and belongs(self._desk.resumed, self._sink.directory):
            self._cut()  # of a run that is over: perhaps it was killed before it came to this
        elif not self._begun and self._sink.publish:
            raise SinkError(
                f"expected a run with a state to publish in {self._sink.directory}, got one that is over; write its "
                "weights with purerun export"
            )
        if self._sink.publish:
            self._publish()

    def _cut(self) -> None:
        """Remove what lies after the checkpoint that is gone on from: the run may come to other states now."""
        manifest, run = self._desk.manifest, self._sink.directory
        assert manifest is not None  # of what is gone on from
        here = name_of(manifest.counters["iter"])
        point(run, here)
        for name in names(run)[names(run).index(here) + 1 :]:
            remove(run, name)
            self._scores.pop(name, None)
        sweep(run)
        prune(run, self._sink.keep, self._sink.best, self._scores)

    def _is_best(self, state: State) -> bool:
        tree = peek(state)
        found, iter = peek(tree["scores"]), tree["iter"].item()
        # Looked at in every iteration, and true in few of them.
        if all(found[counter].item() != iter for counter in self._counters):
            return False
        scores, here = judged(state), name_of(iter)
        self._scores[here] = {name: encoded(score) for name, score in scores.items()}
        return any(each.among(self._scores) == here for each in self._sink.best)

    def _hand_over(self, state: State) -> None:
        # Whatever comes of it, closing does not try the same state again.
        self._unsaved, self._clock = None, perf_counter()
        job = Job.of(state, self._desk.memory(), dict(self._scores))
        self._wanted = job.iter
        self._writer.hand_over(partial(self._write, job))

    def _write(self, job: Job) -> None:
        """Write a checkpoint, then what points to it, and remove what is not kept; on the writer's thread."""
        sink, run, iter, state = self._sink, self._sink.directory, job.iter, job.state()
        self._desk.sync()
        manifest = save(
            state,
            path_of(run, iter),
            recipe=sink.recipe,
            changes=sink.changes,
            parent=self._parent,
            memory=job.memory,
            threads=1,
        )
        self._parent, self._written = manifest.digest, iter
        point(run, name_of(iter))
        if sink.keep is not None or sink.best:
            prune(run, sink.keep, sink.best, job.scores)

    def _look(self, *, ended: bool = False) -> None:
        """Raise what the writer could not do, or tell it; that the newest state is not saved is an error at the end."""
        failures = self._writer.failures()
        if failures and ended and self._written != self._wanted:
            raise failures[-1]
        for error in failures:
            if self._sink.on_error == "stop" or not isinstance(error, SaveError):
                raise error
            warnings.warn(NotSaved(f"{error}; the run goes on"), stacklevel=2)

    def _publish(self) -> None:
        run = self._sink.directory
        there, named = names(run), pointers(run)
        best = [path_of_name(run, named[each.pointer]) for each in self._sink.best if named.get(each.pointer) in there]
        weights = "" if self._sink.publish == "params" else self._sink.publish
        publish_weights(best[0] if best else run, run, _plain(run.resolve().name), weights)


def _plain(name: str) -> str:
    """Make a name that every file system and every shell takes as it is, of the name of a directory."""
    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".-").encode()[:150].decode(errors="ignore")  # room for what is added
    return plain or "weights"


def _refuse_others(run: Path, desk: Desk) -> None:
    """Make sure that checkpoints may be written into a directory."""
    with reading(run):
        if (run / MANIFEST).exists():
            raise SinkError(f"expected the directory of a run, but {run} is a checkpoint itself; choose another place")
    if names(run) and not (desk.overwrite or belongs(desk.resumed, run)):
        raise SinkError(
            f"{run} holds the checkpoints of another run; go on with it (watch(..., resume={str(run)!r})), replace "
            "them (watch(..., overwrite=True)), or choose another place"
        )


def _vacate(run: Path) -> None:
    """Remove the checkpoints of another run, and what one has left that was killed in its first save."""
    for pointer in pointers(run):
        unpoint(run, pointer)
    for name in reversed(names(run)):
        remove(run, name)
    sweep(run)


def _whole(state: State) -> bool:
    try:
        peek(state)
    except StaleState:
        return False
    return True
