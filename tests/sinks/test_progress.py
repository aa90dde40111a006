"""The bar: drawn on a terminal, now and then, and nowhere else."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import purerun as pr
from purerun.hooks import Every
from purerun.sinks.pace import Pace
from tests.sinks import runs


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=160, color_system=None)


def drawn(console):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_it_shows_where_the_run_is(tmp_path):
    """Epoch, iteration, the values of the newest lines of the log, and the end at its end."""
    console = terminal()
    log = pr.sinks.Log(every=5, path=tmp_path / "log.jsonl", console=False)
    runs.drain(pr.watch(runs.states(), log, pr.sinks.Progress(total=12, interval=1e-9, console=console)))
    lines = runs.lines(tmp_path / "log.jsonl")
    text = drawn(console)

    assert "epoch 0  iter 3" in text
    assert "epoch 3  iter 12" in text.splitlines()[-1]
    assert f"loss {next(line['loss'] for line in lines if line['mode'] == 'train'):.4g}" in text
    assert f"size {next(line['size'] for line in lines if line['mode'] == 'val'):.4g}" in text
    assert "0:00:00" in text.splitlines()[-1]


def test_it_draws_now_and_then():
    """Between two looks nothing is drawn: a long interval leaves the first state and the last."""
    console = terminal()
    runs.drain(pr.watch(runs.states(), pr.sinks.Progress(interval=3600.0, console=console)))
    places = set(re.findall(r"iter (\d+)", drawn(console)))

    assert {"1", "12"} == places


def test_it_is_silent_where_nobody_looks(capfd):
    """stderr is not a terminal here: nothing is written."""
    runs.drain(pr.watch(runs.states(), pr.sinks.Progress(total="3 epochs")))

    assert ("", "") == capfd.readouterr()


def test_a_log_on_the_same_terminal_stays_whole():
    """Lines that are written while the bar stands come out as lines of their own."""
    console = terminal()
    bar = pr.sinks.Progress(interval=1e-9, console=console)
    runs.drain(pr.watch(runs.states(iters=4), pr.sinks.Log(every=2), bar))
    told = [line.split("  ")[:3] for line in drawn(console).splitlines() if line.startswith(("train  ", "val  "))]

    assert [["val", "epoch 0", "iter 0"], ["train", "epoch 0", "iter 2"], ["train", "epoch 1", "iter 4"]] == told[:3]


def test_it_goes_away_when_the_run_fails():
    """The terminal is as it was: the cursor is back."""
    console = terminal()

    def failing():
        yield next(runs.states())
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        runs.drain(pr.watch(failing(), pr.sinks.Progress(console=console)))

    text = console.file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize("odd", ["soon", "last", 0, 1.5])
def test_odd_totals_are_refused(odd):
    """A total is a number of epochs or of iterations."""
    with pytest.raises(ValueError, match=r"expected|count"):
        pr.sinks.Progress(total=odd)


def test_pace_in_iterations():
    """What is left takes as long as what was done, iteration for iteration."""
    pace = Pace(Every(100, "iter"), (20, 1000.0))

    assert 60.0 == pace.look(0, 60, 1060.0)
    assert 0.0 == pace.look(0, 100, 1100.0)
    assert 0.0 == pace.look(0, 110, 1100.0)


def test_pace_in_epochs_is_known_from_the_second_on():
    """How long an epoch is shows when the next one begins."""
    pace = Pace(Every(3, "epoch"), (0, 0.0))

    assert [None, None, 40.0] == [pace.look(0, 5, 5.0), pace.look(0, 15, 15.0), pace.look(1, 20, 20.0)]
    assert 60.0 == pace.iterations()


def test_pace_without_a_total():
    """Nothing is known about the end."""
    pace = Pace(None, (0, 0.0))

    assert (None, None) == (pace.look(1, 5, 5.0), pace.iterations())
