"""Weights that others wrote: the tensors are read, and nothing of the file is ever run."""

from __future__ import annotations

import argparse
import collections
import functools
import pathlib
import sys
import types
import zipfile
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from purerun.checkpoint import CheckpointError
from purerun.checkpoint.foreign import read_foreign
from tests.checkpoint.pickled import written

# Two epochs of MMEngine 0.10.7 with its EMAHook, as its Runner wrote it: Linear, BatchNorm, ReLU, Linear.
MMENGINE = Path(__file__).parent / "mmengine" / "epoch_2.pth"
AVERAGE, RAW = [-0.08337320387363434, 0.05568856745958328], [-0.05483124777674675, 0.027146607637405396]


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def same(expected, actual):
    return list(expected) == list(actual) and all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "meta": {"epoch": 3, "config": "import os"}},
        lambda weights: {"model": weights, "optimizer": {"state": {}}, "epoch": 3},
        lambda weights: {"state_dict": nn.DataParallel(model()).state_dict() | prefixed("module.", weights)},
        lambda weights: prefixed("_orig_mod.", weights),
        lambda weights: {"state_dict": weights, "steps": torch.tensor(3)},
    ],
    ids=["plain", "MMCV and Lightning", "torchvision", "DataParallel", "torch.compile", "with another tensor"],
)
def test_the_weights_of_a_file_are_found(tmp_path, wrapped):
    """Where each framework puts them, under the names of the model itself."""
    weights = model().state_dict()

    assert same(weights, read_foreign(written(tmp_path, wrapped(weights))))


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def test_files_of_old_versions_are_read(tmp_path):
    """The format before torch 1.6, in which many published weights are; it cannot be mapped."""
    weights = model().state_dict()
    file = written(tmp_path, {"state_dict": weights, "meta": {}}, _use_new_zipfile_serialization=False)

    assert not zipfile.is_zipfile(file)
    assert same(weights, read_foreign(file))


def test_the_tensors_are_our_own(tmp_path):
    """What happens to the file afterwards, or to another tensor of it, changes nothing."""
    whole = torch.arange(6.0)
    file = written(tmp_path, {"a": whole, "b": whole.view(2, 3)[:, 1:]})
    found = read_foreign(file)
    file.write_bytes(b"\0" * file.stat().st_size)
    found["a"].zero_()

    assert [[1.0, 2.0], [4.0, 5.0]] == found["b"].tolist()


def test_tied_tensors_stay_one(tmp_path):
    """Two names of one tensor in the file are two names of one tensor."""
    tied = torch.ones(2)
    found = read_foreign(written(tmp_path, {"a": tied, "b": tied, "c": torch.ones(2)}))

    assert found["a"] is found["b"]
    assert found["c"] is not found["a"]


@pytest.mark.parametrize(("weights", "expected"), [("", AVERAGE), ("ema", AVERAGE), ("ema_state_dict", RAW)])
def test_a_file_of_mmengine_is_read(weights, expected):
    """Histories and numpy numbers are passed over; its hook writes the average as `state_dict`, the raw ones aside."""
    assert "mmengine.logging.history_buffer.HistoryBuffer" in torch.serialization.get_unsafe_globals_in_checkpoint(
        MMENGINE
    )
    found = read_foreign(MMENGINE, weights)

    names = [f"layers.{layer}.{name}" for layer in (0, 1, 3) for name in ("weight", "bias")]
    norm = [f"layers.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert {*names, *norm} == set(found)
    assert expected == found["layers.3.bias"].tolist()
    assert "mmengine" not in sys.modules


def test_a_fresh_file_of_mmengine_is_read(tmp_path):
    """As the installed one writes it."""
    mmengine = pytest.importorskip("mmengine")
    buffer = mmengine.logging.HistoryBuffer([1.0, 2.0], [1, 1])
    hub = {"log_scalars": {"loss": buffer}, "runtime_info": {"eta": np.float64(1.0)}}
    weights = model().state_dict()

    assert same(weights, read_foreign(written(tmp_path, {"state_dict": weights, "message_hub": hub})))


@pytest.mark.parametrize("name", ["state_dict_ema", "model_ema"])
def test_the_average_of_a_file_is_found(tmp_path, name):
    """As timm and torchvision name it; what wraps an averaged model is taken away, with its counter."""
    average = AveragedModel(model())
    file = written(tmp_path, {"model": model().state_dict(), name: average.state_dict()})

    assert same(average.module.state_dict(), read_foreign(file, "ema"))


class Flags(dict):
    """A mapping of its own class, as Lightning keeps hyper-parameters."""


class Thing:
    """A class that only its owner has."""

    def __init__(self):
        self.name = "thing"

    def __setstate__(self, _):
        pytest.fail("the code of a class that a file names was run")


class Slotted:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 3


EXTRAS = {
    "numpy number": np.float64(3.0),
    "numpy array": np.arange(3),
    "numpy text": np.str_("a"),
    "mapping": Flags(lr=0.1),
    "object": Thing(),
    "slots": Slotted(),
    "class": Thing,
    "namespace": argparse.Namespace(lr=0.1),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "default dict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2], maxlen=3),
    "path": pathlib.PurePosixPath("a/b"),
    "day": date(2020, 1, 1),
    "partial": functools.partial(dict, a=1),
    "bound method": Thing().__init__,
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_what_stands_beside_weights_is_passed_over(tmp_path, extra):
    """Whatever plain data torch's unpickler does not know: an inert stand-in takes its place."""
    weights = model().state_dict()
    file = written(tmp_path, {"hyper_parameters": extra, "state_dict": weights, "more": [extra]})

    assert same(weights, read_foreign(file))


def test_the_table_of_the_unpickler_is_left_as_it_was(tmp_path):
    """Stand-ins are there for one reading only, also for one that fails; what others have put there stays.

    The list that torch gives is of a set, and in no order.
    """
    own = [Flags, (Slotted, "somewhere.else.Slotted")]
    with torch.serialization.safe_globals(own):
        before = torch.serialization.get_safe_globals()
        read_foreign(written(tmp_path, {"state_dict": model().state_dict(), "more": [Thing(), Flags()]}))
        with pytest.raises(CheckpointError):
            read_foreign(written(tmp_path, {"more": Thing()}))
        after = torch.serialization.get_safe_globals()

    assert Counter(before) == Counter(after)
    assert set(own) <= set(after)


class Payload:
    """Pickled as a call."""

    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


def harmful(victim):
    import os
    import subprocess

    code = f"open({str(victim)!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"touch {victim}"),
        "eval": Payload(eval, code),
        "exec": Payload(exec, code),
        "open": Payload(open, str(victim), "w"),
        "subprocess": Payload(subprocess.check_call, ["touch", str(victim)]),
        "path": Payload(pathlib.Path.touch, victim),
        "getattr": Payload(getattr, Payload(__import__, "os"), "system"),
        "torch": Payload(torch.hub.download_url_to_file, "file:///etc/hostname", str(victim)),
        "numpy": Payload(np.save, str(victim), np.zeros(1)),
    }


HARMFUL = tuple(harmful("victim"))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", HARMFUL)
def test_no_payload_is_run(tmp_path, name, old):
    """Where it stands beside the weights, in them, or in their place: nothing happens."""
    victim = tmp_path / "victim"
    for content in (
        {"state_dict": {"w": torch.ones(2)}, "meta": harmful(victim)[name]},
        {"state_dict": {"w": torch.ones(2), "x": harmful(victim)[name]}},
        harmful(victim)[name],
    ):
        file = written(tmp_path, content, _use_new_zipfile_serialization=not old)
        try:
            found = read_foreign(file)
        except CheckpointError:
            found = None
        assert found is None or ["w"] == list(found)
        assert not victim.exists()


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "open", "subprocess", "getattr"])
def test_what_only_harm_would_name_is_refused(tmp_path, name):
    """The file is malicious, and whoever wanted its weights is told."""
    file = written(tmp_path, {"state_dict": {"w": torch.ones(2)}, "meta": harmful(tmp_path / "victim")[name]})

    with pytest.raises(CheckpointError, match=r"a\.pth: asks for \w+\.\w+, which is no data; it is refused"):
        read_foreign(file)


def test_attributes_that_a_file_sets_are_not_called(tmp_path):
    """A mapping whose own attributes hide its methods is read as a mapping all the same."""
    weights = collections.OrderedDict(w=torch.ones(2))
    vars(weights).update(get=torch.Size, keys=torch.Size, values=torch.Size)

    assert ["w"] == list(read_foreign(written(tmp_path, weights)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "expected weights by their names, found list"),
        ({"epoch": 3}, "expected weights by their names, found epoch"),
        ({}, "found nothing"),
        ({"state_dict": {}, "meta": {}}, "found state_dict, meta; save model.state_dict"),
        (nn.Linear(2, 1), "expected weights by their names, found Counter"),
        ({"w": torch.ones(2).to_sparse()}, "expected a dense tensor that the file holds at w"),
        ({"w": torch.ones(2, device="meta")}, "expected a dense tensor that the file holds at w"),
        ({"w": torch.ones(1).expand(10**12)}, "expected a dense tensor that the file holds at w"),
    ],
)
def test_what_has_no_weights_is_refused(tmp_path, content, message):
    """It is said what is there, and what to save instead."""
    with pytest.raises(CheckpointError, match=message):
        read_foreign(written(tmp_path, content))


@pytest.mark.parametrize("weights", ["ema", "optimizer", "nothing"])
def test_weights_that_are_not_there_are_named(tmp_path, weights):
    """The average, or an entry."""
    file = written(tmp_path, {"state_dict": model().state_dict(), "optimizer": {"lr": 0.1}})

    with pytest.raises(CheckpointError, match=f"expected weights '{weights}', found state_dict, optimizer"):
        read_foreign(file, weights)


def test_damaged_files_are_refused(tmp_path):
    """Cut anywhere, empty, or no pickle at all: one line, whatever torch makes of it."""
    raw = written(tmp_path, {"state_dict": model().state_dict()}).read_bytes()
    old = written(tmp_path, model().state_dict(), _use_new_zipfile_serialization=False).read_bytes()
    file = tmp_path / "b.pth"
    for content in (
        b"",
        b"hello",
        b"\x80\x02.",
        *(each[: len(each) * n // 12] for each in (raw, old) for n in range(12)),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"b\.pth: ") as caught:
            read_foreign(file)
        assert 1 == len(str(caught.value).splitlines())


def test_a_compressed_file_is_refused(tmp_path):
    """torch.save never compresses, and a few bytes could become gigabytes."""
    plain = zipfile.ZipFile(written(tmp_path, model().state_dict()))
    with plain, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))

    with pytest.raises(CheckpointError, match="got a compressed"):
        read_foreign(tmp_path / "b.pth")
