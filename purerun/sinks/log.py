"""The log of a run: a line of JSON at each interval and for each validation."""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from purerun.checkpoint import JSON, SaveError, encoded, has_scheme
from purerun.hooks import Every, When, every
from purerun.population import members
from purerun.sinks.desk import Desk, Watcher, belongs
from purerun.sinks.lines import LineFile, begun, gone_on, marked, refuse_others, written
from purerun.sinks.means import Means, hyper_names
from purerun.sinks.pace import Pace, total
from purerun.sinks.scores import Judged, Scores
from purerun.sinks.sink import Sink
from purerun.state import REPORT, State, peek
from purerun.valid import one_of

RESERVED = frozenset({"mode", "epoch", "iter", "time", "data_time", "eta", "timestamp", "memory"})


class NonFinite(UserWarning):
    """A loss in the log is NaN or infinite."""


class LateLines(UserWarning):
    """Lines of a log could not be written yet."""


def _path(given: str | os.PathLike[str] | None) -> Path | None:
    if given is not None and has_scheme(given):
        raise ValueError(f"expected a file of this machine for the log, got {given}; give its path")
    return None if given is None else Path(given)


@attrs.frozen
class Log(Sink):
    """Write what a run measures: to a file of JSON lines, to the console, or both.

    A line of training holds `mode` ("train"), `epoch` and `iter` (finished ones); every scalar
    of the report: a hyper-parameter as it is now, anything else as its mean over the iterations
    since the line before; `time` (seconds an iteration, everything included), `eta` (seconds
    left, where `total` is known), `memory` (MiB at the peak, on CUDA) and `timestamp` (UTC).  The
    last line of a run may cover fewer iterations.  A line of validation has `mode` "val" and the
    scores.  NaN and infinities are the strings "nan", "inf" and "-inf".

    Only time, eta, memory and timestamp depend on whether the run was interrupted.  Values
    are read from the device at these lines and at checkpoints, never in between.

    Attributes:
        every: when to write a line of training.
        path: the file; None for none.
        console: write readable lines to stderr.
        on_error: what to do when the disk does not take a line: "stop" the run with a SaveError, or "warn", go on and
            write it with the next one.
        total: the end of the run, such as "12 epochs" or 5000 (iterations), for `eta`.

    >>> import json, tempfile, purerun as pr
    >>> step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1))
    >>> states = pr.TrainLoop(step, iters=4)(step.init(seed=0), [torch.zeros(4, 2)] * 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for state in pr.watch(states, Log(every=2, path=f"{folder}/log.jsonl", console=False)):
    ...         pass
    ...     lines = [json.loads(line) for line in Path(f"{folder}/log.jsonl").read_text().splitlines()]
    >>> [(line["mode"], line["epoch"], line["iter"], line["lr"]) for line in lines]
    [('train', 1, 2, 0.1), ('train', 2, 4, 0.1)]
    """

    every: When = attrs.field(default=50, converter=every)
    path: Path | None = attrs.field(default=None, converter=_path)
    console: bool = attrs.field(default=True, kw_only=True)
    on_error: Literal["stop", "warn"] = attrs.field(default="stop", kw_only=True, validator=one_of("stop", "warn"))
    total: Every | None = attrs.field(default=None, kw_only=True, converter=total)

    @property
    def label(self) -> str:
        """The name of the file tells several logs apart."""
        return "Log" if self.path is None else f"Log {self.path.name}"

    def open(self, desk: Desk) -> Watcher:
        """Begin to write.

        Raises:
            SinkError: the file holds another run's log.
            SaveError: it cannot be written.
        """
        if self.path is not None and desk.manifest is None:
            refuse_others(self.path, overwrite=desk.overwrite)
        return _Logging(self, desk)


class _Logging(Watcher):
    def __init__(self, log: Log, desk: Desk) -> None:
        self._log, self._desk = log, desk
        self._file: LineFile | None = None
        # Most logs ask for every n iterations, and the counter is at hand.
        when = log.every
        self._stride = when.count if isinstance(when, Every) and when == Every(when.count, "iter") else 0
        self._means, self._scores, self._pace = Means(), Scores(), Pace(log.total, (0, perf_counter()))
        self._add = self._means.pending.append
        self._since, self._count = perf_counter(), 0
        self._epoch, self._iter, self._scored = torch.tensor(0), 0, False
        self._fresh, self._warned = True, False
        self._recalled: Any = None

    def check(self, state: State) -> None:
        path, mark = self._log.path, marked(self._recalled)
        if path is not None and self._desk.manifest is not None:
            own = belongs(self._desk.resumed, path.parent)
            if mark is None or not (own or mark.begins(written(path))):
                refuse_others(path, overwrite=self._desk.overwrite)

    def begin(self, state: State) -> None:
        self._fresh = False
        self._scored = "scores" in state.names() and bool(state["scores"].names())
        self._means.current = hyper_names(state)
        self._means.members = self._scores.members = members(state)
        self._pace.begun = (int(state["iter"]) - 1, self._since)
        # Not before there is something to write: a run that goes on may be over, and its disk read-only.
        if self._log.path is not None:
            self._file = self._open(self._log.path)

    def see(self, state: State) -> None:
        tree = peek(state)
        self._epoch, self._iter = tree["epoch"], tree["iter"].item()
        self._count += 1
        # The leaves of the report, not the state: they stay whole when it is released.
        if REPORT in tree:
            self._add(peek(tree[REPORT]))
        if (self._iter % self._stride == 0) if self._stride else self._log.every(state):
            self._write_means()
        if self._scored:
            for judged in self._scores.news(peek(tree["scores"]), self._iter):
                self._write_scores(judged)

    def close(self, error: BaseException | None) -> None:
        try:
            if self._count:
                self._write_means()
            elif self._fresh and self._recalled is not None and error is None:
                self._write_missing(self._recalled)
        finally:
            if self._file is not None:
                self._file.close()

    def memory(self) -> JSON:
        mark = {"bytes": None} if self._file is None else attrs.asdict(self._file.mark())
        return {**mark, "means": self._means.memory(), "scores": self._scores.memory()}

    def sync(self) -> None:
        if self._file is not None:
            self._file.sync()

    def recall(self, memory: Any) -> None:
        self._recalled = memory
        if memory is not None:
            self._means.recall(memory["means"])
            self._scores.recall(memory["scores"])

    def _open(self, path: Path) -> LineFile:
        if self._desk.manifest is None:
            return begun(path, overwrite=self._desk.overwrite)
        own = belongs(self._desk.resumed, path.parent)
        return gone_on(path, marked(self._recalled), own=own, overwrite=self._desk.overwrite)

    def _write_missing(self, memory: Any) -> None:
        """Write the last line of a run that was killed between its last checkpoint and that line."""
        path, mark, manifest = self._log.path, marked(memory), self._desk.manifest
        if path is None or mark is None or manifest is None or not memory["means"]:
            return
        text = written(path)
        if mark.begins(text) and b"\n" not in text[mark.bytes :]:
            self._file = self._open(path)
            self._write("train", manifest.counters["epoch"], manifest.counters["iter"], self._means.take(), {})

    def _write_means(self) -> None:
        epoch, now, on = int(self._epoch), perf_counter(), _device(self._means.pending)
        means = self._means.take()
        self._warn(means)
        left = self._pace.look(epoch, self._iter, now)
        spent = {"time": (now - self._since) / self._count, **({} if left is None else {"eta": left})}
        self._since, self._count = now, 0
        peak = {"memory": torch.cuda.max_memory_allocated(on) // 2**20} if on.type == "cuda" else {}
        self._write("train", epoch, self._iter, means, {**spent, **peak})

    def _write_scores(self, judged: Judged) -> None:
        # Before training no epoch is finished; any other validation is of the state at hand.
        self._write("val", int(self._epoch) if judged.iter else 0, judged.iter, judged.scores, {})

    def _write(self, mode: str, epoch: int, iter: int, values: Mapping[str, float], more: Mapping[str, float]) -> None:
        line: dict[str, JSON] = {"mode": mode, "epoch": epoch, "iter": iter}
        line |= {f"metrics/{name}" if name in RESERVED else name: encoded(value) for name, value in values.items()}
        line |= {**more, "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds")}
        self._desk.board[mode] = line
        if self._file is not None:
            self._append(self._file, line)
        if self._log.console:
            sys.stderr.write(readable(line) + "\n")

    def _append(self, file: LineFile, line: Mapping[str, JSON]) -> None:
        try:
            file.append(line)
        except SaveError as error:
            if self._log.on_error == "stop":
                raise
            warnings.warn(LateLines(f"{error}; the run goes on, and keeps the lines for later"), stacklevel=2)

    def _warn(self, means: Mapping[str, float]) -> None:
        bad = [name for name in means if name.split(".")[-1] == "loss" and not math.isfinite(means[name])]
        if bad and not self._warned:
            self._warned = True
            told = ", ".join(f"{name} = {means[name]}" for name in bad)
            warnings.warn(
                NonFinite(
                    f"at iteration {self._iter} the mean since the last line of the log is {told}; "
                    "go back to a checkpoint, and lower the learning rate or clip the gradients"
                ),
                stacklevel=2,
            )


def readable(line: Mapping[str, JSON]) -> str:
    """Write a line of the log for the console.

    >>> readable({"mode": "train", "epoch": 1, "iter": 50, "loss": 0.25, "lr": 1e-05, "time": 0.0123, "eta": 61.0})
    'train  epoch 1  iter 50  loss 0.25  lr 1e-05  12.3 ms/iter  eta 0:01:01'
    >>> readable({"mode": "train", "epoch": 1, "iter": 50, "loss[0]": 0.25, "loss[1]": "nan", "loss[2]": 0.125})
    'train  epoch 1  iter 50  loss 0.125 to 0.25, nan'
    """
    words = [f"{name} {value}" for name, value in _short_values(line).items()]
    words = [str(line["mode"]), f"epoch {line['epoch']}", f"iter {line['iter']}", *words]
    if isinstance(seconds := line.get("time"), float):
        words.append(f"{1000 * seconds:.3g} ms/iter")
    if isinstance(left := line.get("eta"), float):
        words.append(f"eta {clock(left)}")
    return "  ".join(words)


def _short_values(line: Mapping[str, JSON]) -> dict[str, str]:
    """Write the values of a line; those of the members of a population as their range."""
    values = {name: value for name, value in line.items() if name not in RESERVED}
    columns: dict[str, list[JSON]] = {}
    for name, value in values.items():
        columns.setdefault(re.sub(r"\[\d+\]$", "", name), []).append(value)
    return {name: _range(column) for name, column in columns.items()}


def _range(column: list[JSON]) -> str:
    if len(column) == 1:
        return _short(column[0])
    # NaNs and infinities are strings here; they are not hidden by the others.
    numbers = sorted(value for value in column if isinstance(value, int | float))
    ends = [*dict.fromkeys(_short(value) for value in (*numbers[:1], *numbers[-1:]))]
    odd = [*dict.fromkeys(str(value) for value in column if isinstance(value, str))]
    return ", ".join([" to ".join(ends), *odd] if ends else odd)


def clock(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds.

    >>> clock(3661.4)
    '1:01:01'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _short(value: JSON) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _device(reports: list[Mapping[str, Any]]) -> torch.device:
    loss = reports[-1].get("loss") if reports else None
    return loss.device if isinstance(loss, Tensor) else torch.device("cpu")
