"""What is saved comes back: every bit, every name, every dtype, every place in memory."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import purerun as pr
from purerun import program
from purerun.checkpoint import CheckpointError, read_manifest
from purerun.checkpoint.tensors import DTYPES
from purerun.identity import describe, named_leaves, read_bytes
from purerun.state import lazy_clone, seal, unseal
from purerun.testing import counted

WHOLE = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
SIZED = sorted(
    name
    for name in DTYPES
    if name in WHOLE or (name.startswith(("float", "bfloat", "bool", "complex")) and name != "complex32")
)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)


@st.composite
def tensors(draw):
    """Any bits of any dtype: NaNs with payloads, negative zeros, infinities among them."""
    dtype, shape = DTYPES[draw(st.sampled_from(SIZED))], draw(shapes)
    count = math.prod(shape) * dtype.itemsize
    raw = bytearray(draw(st.binary(min_size=count, max_size=count)))
    if dtype == torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).clone().view(dtype).reshape(shape)


trees = st.recursive(tensors(), lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8)


def saved(state, **more):
    with TemporaryDirectory() as folder:
        pr.save(state, f"{folder}/a", **more)
        return pr.load(f"{folder}/a"), read_manifest(f"{folder}/a")


def structure(state):
    return {name: structure(state[name]) if isinstance(state[name], pr.State) else None for name in state.names()}


@given(st.dictionaries(names.filter(lambda name: name != "metrics"), trees, max_size=4))
def test_any_tree_comes_back_bit_for_bit(tree):
    """Whatever the tree, the names, the dtypes and the bits: digest, leaves and structure are the same."""
    state = seal({**tree, "metrics": {}})
    back, manifest = saved(state)

    assert {n: (t.dtype, t.shape, bytes(read_bytes(t))) for n, t in named_leaves(state)} == {
        n: (t.dtype, t.shape, bytes(read_bytes(t))) for n, t in named_leaves(back)
    }
    assert structure(state) == structure(back)
    assert pr.digest(state) == pr.digest(back) == manifest.digest


@pytest.mark.parametrize("name", SIZED)
def test_every_dtype_comes_back(name):
    """Each dtype by itself: a matrix, a number, and no elements at all."""
    dtype = DTYPES[name]
    raw = torch.arange(6 * dtype.itemsize, dtype=torch.uint8) % (2 if dtype == torch.bool else 251)
    full = raw.clone().view(dtype).reshape(2, 3)
    state = seal({"a": full, "b": full[0, 0].clone(), "c": full[:0].clone(), "metrics": {}})
    back, _ = saved(state)

    assert [describe(leaf) for _, leaf in named_leaves(state)] == [describe(leaf) for _, leaf in named_leaves(back)]


def test_report_is_not_saved():
    """What the last step measured stays behind; the loaded state has an empty report."""
    back, _ = saved(counted(iter=1, metrics={"loss": torch.tensor(2.0)}))

    assert () == back["metrics"].names()


def test_loaded_state_is_a_state_like_any_other():
    """Its memory is torch's own: drafts share it lazily, and writing into one leaves it whole."""
    back, _ = saved(counted(params={"w": torch.zeros(4), "n": torch.tensor(1)}))
    draft = unseal(back)

    assert draft["params"]["w"].const_data_ptr() == back["params"]["w"].const_data_ptr()

    draft["params"]["w"] += 1

    assert [0.0] * 4 == back["params"]["w"].tolist()


def test_saving_copies_no_shared_memory():
    """A save reads copy-on-write memory without making it anybody's own."""
    weight = torch.zeros(1000)
    state = counted(params={"w": weight})
    other = lazy_clone(state["params"]["w"])
    saved(state)

    assert other.const_data_ptr() == state["params"]["w"].const_data_ptr()


@pytest.mark.parametrize(
    "leaf",
    [
        torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
    ],
)
def test_place_in_memory_comes_back(leaf):
    """A leaf that lies in memory in another order does so again: kernels are chosen by it."""
    back, _ = saved(seal({"w": leaf}))

    assert leaf.stride() == back["w"].stride()
    assert leaf.tolist() == back["w"].tolist()


def test_slices_and_repeats_become_dense():
    """A leaf with holes or repeats in memory comes back dense."""
    back, _ = saved(seal({"a": torch.arange(10)[::2], "b": torch.tensor([7]).expand(3)}))

    assert ([0, 2, 4, 6, 8], [7, 7, 7]) == (back["a"].tolist(), back["b"].tolist())
    assert ((1,), (1,)) == (back["a"].stride(), back["b"].stride())


@pytest.mark.parametrize("leaf", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")])
def test_what_has_no_plain_bytes_is_refused(leaf, tmp_path):
    """A sparse leaf, or one without data, is refused by name and leaves nothing on the disk."""
    with pytest.raises(CheckpointError, match="params/w"):
        pr.save(seal({"params": {"w": leaf}}), tmp_path / "a")

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("nested", [False, True])
def test_a_name_that_the_format_keeps_for_itself_is_refused(nested, tmp_path):
    """Where it would stand at the top of the file, and nowhere else; nothing is written that cannot be read."""
    leaf = torch.ones(2)
    if nested:
        state = counted(params={"__metadata__": leaf}, __metadata__={"x": leaf})
        pr.save(state, tmp_path / "a")
        assert () == pr.diff(state, pr.load(tmp_path / "a"))
        return
    with pytest.raises(CheckpointError, match="expected another name than __metadata__"):
        pr.save(counted(__metadata__=leaf), tmp_path / "a")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("raw", [[2], [0, 1, 255], [255, 0, 1], [0, 7, 1]])
def test_a_bool_that_is_neither_is_refused(raw, tmp_path):
    """Any copy of it would have other bytes, so it could never be believed."""
    leaf = torch.tensor(raw, dtype=torch.uint8).view(torch.bool)
    with pytest.raises(CheckpointError, match="expected bytes 0 and 1 in the bool tensor params/w, found others"):
        pr.save(counted(params={"w": leaf}), tmp_path / "a")
    assert [] == list(tmp_path.iterdir())


def test_manifest_says_what_it_was_told(tmp_path):
    """Counters, recipe, parent and memories come back as they were given."""
    state = counted(epoch=2, iter=7, cursor=3, seed=5)
    given_ = {"recipe": {"lr": 0.1, "names": ["a"]}, "parent": "0" * 64, "memory": {"Log": {"sum": 0.1 + 0.2}}}
    written = pr.save(state, tmp_path / "a", **given_)
    manifest = read_manifest(tmp_path / "a")

    assert written == manifest
    assert {"epoch": 2, "iter": 7, "cursor": 3, "seed": 5} == manifest.counters
    assert given_ == {"recipe": manifest.recipe, "parent": manifest.parent, "memory": manifest.memory}
    assert {"python", "torch", "tensordict", "safetensors", "purerun"} == set(manifest.versions)


def test_same_state_same_files(tmp_path):
    """A checkpoint is a function of what was saved: no clock and no name of a machine is in it."""
    state = counted(iter=1, params={"w": torch.ones(3)})
    pr.save(state, tmp_path / "a")
    pr.save(state.hold(), tmp_path / "b")

    for file in ("manifest.json", "state.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("odd", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_what_is_not_plain_data_is_refused(odd, tmp_path):
    """A recipe that JSON cannot hold is refused, and nothing is left behind."""
    with pytest.raises(CheckpointError, match="plain JSON"):
        pr.save(counted(), tmp_path / "a", recipe=odd)

    assert [] == list(tmp_path.iterdir())


def test_program_text_travels(tmp_path, monkeypatch):
    """The text behind a fingerprint is in the manifest, so that another process can say what differs."""
    mark = program.fingerprint("lr: 0.1")
    pr.save(seal({"fingerprint": mark}), tmp_path / "a")
    monkeypatch.setattr(program, "_TEXTS", {})
    state = pr.load(tmp_path / "a")

    assert "- lr: 0.1\n+ lr: 0.2" == program.difference(state["fingerprint"], "lr: 0.2")


def test_contract_of_the_script(tmp_path):
    """`pr.save` then `pr.load` of one directory gives the same digest."""
    step = pr.TrainStep(torch.nn.Linear(3, 2), lambda m, x: m(x).square().mean(), pr.optim.SGD(lr=0.1, momentum=0.9))
    state = step(step.init(seed=0), torch.ones(4, 3))
    pr.save(state, Path(tmp_path) / "runs" / "a")

    assert pr.digest(pr.load(tmp_path / "runs/a")) == pr.digest(state)
    assert () == pr.diff(pr.load(tmp_path / "runs/a"), state)


def test_a_verified_state_is_in_memory_of_its_own(tmp_path):
    """What was believed stays so, whatever happens to the file afterwards."""
    state = counted(iter=1, params={"w": torch.arange(1000.0)})
    pr.save(state, tmp_path / "a")
    loaded = pr.load(tmp_path / "a")
    (tmp_path / "a" / "state.safetensors").write_bytes(b"")

    assert () == pr.diff(state, loaded)


def test_without_verification_the_file_itself_is_the_memory(tmp_path):
    """Mapped, not read; what is written into a leaf does not reach the file, and states that follow are right."""
    state = counted(iter=1, params={"w": torch.arange(1000.0)}, empty={"z": torch.ones(3, dtype=torch.complex128)})
    pr.save(state, tmp_path / "a")
    raw = (tmp_path / "a" / "state.safetensors").read_bytes()
    loaded = pr.load(tmp_path / "a", verify=False)
    mapped = Path("/proc/self/maps").read_text() if sys.platform == "linux" else str(tmp_path / "a")
    later = loaded.replace(iter=2)
    loaded["params"]["w"].add_(1)

    assert str(tmp_path / "a") in mapped
    assert raw == (tmp_path / "a" / "state.safetensors").read_bytes()
    assert ("iter",) == tuple(leaf.path for leaf in pr.diff(state, later))


def test_files_can_be_read_by_whoever_can_read_the_folder(tmp_path):
    """Whatever the library that writes tensors thinks of that."""
    pr.save(counted(), tmp_path / "a")
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "a").iterdir()}

    assert modes["manifest.json"] == modes["state.safetensors"]
