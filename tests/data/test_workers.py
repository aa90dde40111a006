"""Worker processes change nothing but the time: same batches, no trace, no part in the terminal's signals."""

from __future__ import annotations

import multiprocessing.process
import os
import signal
import subprocess
import sys
import textwrap

import attrs
import pytest
import torch

from purerun.data import Compose, Loader, Noise, Rotate, Shift, Tensors
from purerun.data.workers import leave_signals_to_the_main_process
from tests.data.samples import Named, Noisy, generators, noisy_collate, same


def tensors():
    return Tensors(image=torch.rand(23, 1, 6, 6), label=torch.arange(23))


def drawing(batch, chance):
    return {**batch, "noise": torch.rand(2), "own": chance.normal(1)}


class WhoAmI(Noisy):
    """Samples that tell which process made them."""

    def __getitem__(self, index):
        return torch.tensor([index, os.getpid()])


KINDS = {
    "samples that draw": Loader(Noisy(23), batch_size=5, shuffle=True, prefetch=3),
    "long batches": Loader(Noisy(60), batch_size=20, shuffle=True),
    "named tuples": Loader(Named(23), batch_size=4, drop_last=True),
    "a collate that draws": Loader(Noisy(23), batch_size=5, shuffle=True, collate=noisy_collate),
    "tensors": Loader(tensors(), batch_size=6, shuffle=True, batch_transform=Compose([Shift(2), Rotate(20), Noise(1)])),
    "a batch transform that draws": Loader(tensors(), batch_size=6, batch_transform=drawing),
    "large batches": Loader(Tensors(torch.rand(6, 300_000), torch.arange(6)), batch_size=3),
    "a batch sampler": Loader(Noisy(9), batch_sampler=[[1, 2, 3], [8], [0, 4]]),
}


@pytest.mark.parametrize("loader", KINDS.values(), ids=KINDS.keys())
def test_workers_make_the_same_batches(loader):
    """Two workers give what none give, from the start and from the middle, and leave the generators alone."""
    with attrs.evolve(loader, workers=2).open(7) as session:
        before = generators()
        cursor = 0
        for _ in range(2):
            expected = list(loader.read(7, 1, cursor))
            assert same(expected, list(session.read(1, cursor)))
            cursor = expected[0][1].cursor
        assert before == generators()


def test_persistent_workers_live_through_epochs():
    """The same two processes serve three epochs, one of them broken off; each epoch is what it should be."""
    loader = Loader(WhoAmI(12), batch_size=2, shuffle=True)
    seen = set()
    with attrs.evolve(loader, workers=2).open(0) as session:
        next(session.read(5, 0))
        for epoch in range(3):
            found = [(batch, position) for batch, position in session.read(epoch, 4)]
            seen |= {pid for batch, _ in found for pid in batch[:, 1].tolist()}
            plain = list(loader.read(0, epoch, 4))
            assert [(batch[:, 0].tolist(), place) for batch, place in plain] == [
                (batch[:, 0].tolist(), place) for batch, place in found
            ]

    assert 2 == len(seen - {os.getpid()}) == len(seen)


def test_an_error_in_a_worker_names_the_sample():
    """The message of a failing sample reaches the main process, with its place."""

    class Broken(Noisy):
        def __getitem__(self, index):
            return index if index != 7 else 1 / 0

    with pytest.raises(ZeroDivisionError, match="while making sample 7 of the dataset, at position 7 of epoch 0"):
        list(Loader(Broken(20), batch_size=4, workers=1).read(0, 0, 0))


def test_workers_that_do_not_persist_end_with_their_epoch():
    """Without `persistent` each epoch has processes of its own, and gives the same."""
    loader = Loader(Noisy(8), batch_size=4, workers=1, persistent=False)
    with loader.open(0) as session:
        found = [list(session.read(epoch, 0)) for epoch in range(2)]

    assert same([list(attrs.evolve(loader, workers=0).read(0, epoch, 0)) for epoch in range(2)], found)


SCRIPT = """
    import os, signal, sys, time
    import purerun as pr

    class Slow:
        def __len__(self):
            return 10_000

        def __getitem__(self, index):
            time.sleep(0.01)
            return index

    asked = []
    after = 0
    session = pr.Loader(Slow(), batch_size=4, workers=2).open(0)
    try:
        for _, position in session.read(0, 0):
            if position.cursor == 4:
                if sys.argv[1] == "handled":
                    for number in (signal.SIGINT, signal.SIGTERM):
                        signal.signal(number, lambda *_: asked.append(1))
                print("reading", flush=True)
            after += len(asked) == 2
            if after == 8:
                print("eight more", flush=True)
                sys.exit(143)
            if position.cursor == 40 and sys.argv[1] == "left open":
                sys.exit()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who sent a signal")
@pytest.mark.parametrize(
    ("name", "signals", "code", "last"),
    [
        ("left open", [], 0, ""),
        ("default", ["SIGINT"], 130, "interrupted\n"),
        ("handled", ["SIGINT", "SIGTERM"], 143, "eight more\n"),
    ],
    ids=["none", "default", "handled"],
)
def test_signals_to_the_whole_group_are_the_main_process_s(tmp_path, name, signals, code, last):
    """Ctrl-C and a scheduler's SIGTERM reach every process; the workers stay, silent, and leave with the main one."""
    script = tmp_path / "reading.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "reading\n" == process.stdout.readline()

    for one in signals:
        os.killpg(process.pid, getattr(signal, one))
    out, err = process.communicate(timeout=60)

    assert (last, "", code) == (out, err, process.returncode)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who sent a signal")
def test_a_worker_obeys_its_parent():
    """A worker that hangs can still be ended by the process that started it, and by no other."""
    ready, tell = os.pipe()
    worker = os.fork()
    if not worker:
        leave_signals_to_the_main_process(0)
        os.write(tell, b"x")
        signal.pause()
    os.read(ready, 1)
    stranger = os.fork()
    if not stranger:
        os.kill(worker, signal.SIGTERM)
        os._exit(0)
    os.waitpid(stranger, 0)
    assert (0, 0) == os.waitpid(worker, os.WNOHANG)

    os.kill(worker, signal.SIGTERM)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    os.close(ready)
    os.close(tell)


def test_signals_that_come_while_workers_start_are_ignored_too(monkeypatch):
    """Ctrl-C for the whole group, before a worker has learnt to leave it to the main process."""
    start = multiprocessing.process.BaseProcess.start

    def struck(process):
        start(process)
        for number in (signal.SIGINT, signal.SIGUSR1):
            os.kill(process.pid, number)

    def read(workers):
        with Loader(torch.arange(12.0), batch_size=2, workers=workers).open(0) as session:
            return [batch.tolist() for batch, _ in session.read(0, 0)]

    expected = read(0)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", struck)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    assert expected == read(2)
    assert before == signal.pthread_sigmask(signal.SIG_BLOCK, ())
