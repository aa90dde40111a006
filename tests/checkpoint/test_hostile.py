"""Malice with a right checksum: refused with one line, and with little memory, or it is a sound state after all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import purerun as pr
from purerun.checkpoint import CheckpointError, Manifest, read_manifest
from purerun.testing import counted
from tests.checkpoint.forging import content_of, fitting, forge, sha, signed, tensors

ROOT = Path(__file__).parent.parent.parent
STATE = counted(iter=5, params={"w": torch.arange(6.0).reshape(2, 3), "v": torch.ones(4, dtype=torch.complex128)})
ZERO = sha(b"")


@pytest.fixture(scope="module")
def good():
    """A sound checkpoint: its directory, what its manifest says, its tensors."""
    with TemporaryDirectory() as folder:
        pr.save(STATE, f"{folder}/good", recipe={"lr": 0.1}, memory={"Log": {"bytes": 3}})
        raw = Path(f"{folder}/good/state.safetensors").read_bytes()
        yield Path(folder) / "good", content_of(f"{folder}/good"), raw


def header_of(raw):
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_(content, **changes):
    return {**content, **changes}


PATHS = {
    "absolute": "/etc/passwd",
    "up": "../../x",
    "up inside": "params/../../x",
    "dot": "./params/w",
    "home": "~/x",
    "backslash": "..\\..\\x",
    "drive": "C:\\x",
    "nul": "params/w\0.txt",
    "empty": "",
    "slash": "/",
    "trailing": "params/",
    "double": "params//w",
    "url": "file:///etc/passwd",
    "long": "x" * 100_000,
    "surrogate": "\ud800",
    "dunder": "__class__/__init__",
}

SIZES = {
    "2**63": 2**63,
    "2**64": 2**64,
    "negative": -1,
    "float": 1.0,
    "bool": True,
    "text": "1",
    "null": None,
    "digits": 10**4000,
    "list": [1],
}

SHAPES = {
    "2**63": str(2**63),
    "2**64": str(2**64),
    "overflow": "4294967296x4294967296",
    "overflow to six": f"{2**63 + 3}x2",
    "zero": "0x9223372036854775807",
    "zeros": "0",
    "negative": "-1",
    "signed": "+6",
    "digits": "9" * 10_000,
    "dimensions": "x".join(["1"] * 100_000),
    "more than torch has": "x".join(["1"] * 70),
    "unicode digits": "\u0666",
    "hex": "0x6",
    "empty": "",
    "float": "6.0",
}


def hostile_manifests(content):
    """Make manifests that only their checksum speaks for: name -> content."""
    size = content["files"]["state.safetensors"]
    line = content["leaves"]["params/w"]
    found = {}
    for name, path in PATHS.items():
        found |= {
            f"file {name}": with_(content, files={path: size}),
            f"two files {name}": with_(content, files={"state.safetensors": size, path: size}),
            f"leaf {name}": with_(content, leaves={**content["leaves"], path: line}),
            f"leaf instead {name}": with_(
                content,
                leaves={(path if each == "params/w" else each): text for each, text in content["leaves"].items()},
            ),
            f"empty {name}": with_(content, empty=[*content["empty"], path, path]),
            f"fields {name}": with_(content, **{path: 1}),
        }
    for name, value in SIZES.items():
        found |= {
            f"bytes {name}": with_(content, files={"state.safetensors": {**size, "bytes": value}}),
            f"strides {name}": with_(content, strides={"params/w": [value, 1]}),
            f"format {name}": with_(content, format=value),
        }
    for name, shape in SHAPES.items():
        for leaf in ("params/w", "params/v"):
            dtype, _, mark = content["leaves"][leaf].split()
            found[f"shape {name} {leaf[-1]}"] = with_(
                content, leaves={**content["leaves"], leaf: f"{dtype} {shape} {mark}"}
            )
    for dtype in ("Tensor", "load", "float33", "__class__", "x" * 100_000, "device", ""):
        found[f"dtype {dtype[:20]}"] = with_(content, leaves={**content["leaves"], "params/w": f"{dtype} 2x3 {ZERO}"})
    return found


def hostile_texts(content):
    """Make manifests that are no JSON objects, or odd ones: name -> text before its checksum."""
    body = json.dumps(content, indent=1)[1:-2]
    end = ',\n "checksum": ""\n}\n'
    inserted = {
        "1e400": '"created": 1e400',
        "nan": '"created": NaN',
        "twice": '"digest": "' + "0" * 64 + '"',
        "files twice": '"files": {}',
        "deep list": '"recipe": ' + "[" * 100_000 + "]" * 100_000,
        "deep object": '"recipe": ' + '{"a":' * 100_000 + "1" + "}" * 100_000,
        "unclosed": '"recipe": ' + "[" * 100_000,
        "digits": '"recipe": ' + "9" * 1_000_000,
        "text": '"recipe2": "' + "x" * 1_000_000 + '"',
        "escape": '"recipe2": "\\ud800"',
    }
    return {
        **{f"first {name}": f"{{\n {text},{body}{end}" for name, text in inserted.items()},
        **{f"last {name}": f"{{{body},\n {text}{end}" for name, text in inserted.items()},
        "a list": '[\n "checksum": ""\n}\n',
        "in a list": '[{\n "checksum": ""\n}\n',
        "nothing else": '{\n "checksum": ""\n}\n',
    }


def hostile_headers(content, raw):
    """Make tensors files whose manifest says what is true of them: name -> content, file."""
    header, data = header_of(raw)
    w = header["params/w"]
    begin, stop = w["data_offsets"]
    other = header["iter"]["data_offsets"]
    limit = 2**63

    def entry(**changes):
        return json.dumps({**header, "params/w": {**w, **changes}}).encode()

    twice = json.dumps(header)[:-1] + ', "params/w": ' + json.dumps({**w, "data_offsets": other}) + "}"
    headers = {
        "overlap": entry(data_offsets=other),
        "overlap of a part": entry(data_offsets=[begin - 8, stop - 8]),
        "outside": entry(data_offsets=[len(data), len(data) + stop - begin]),
        "backwards": entry(data_offsets=[stop, begin]),
        "huge offsets": entry(data_offsets=[limit, limit + 24]),
        "huge offsets that wrap": entry(data_offsets=[2**64 - 24, 2**64]),
        "negative offsets": entry(data_offsets=[-24, 0]),
        "no bytes": entry(data_offsets=[begin, begin]),
        "float offsets": entry(data_offsets=[float(begin), float(stop)]),
        "huge shape": entry(shape=[2**62, 2**62]),
        "shape that wraps": entry(shape=[2**63 + 3, 2]),
        "zero shape": entry(shape=[0, 2**63 - 1]),
        "negative shape": entry(shape=[-2, -3]),
        "other dtype": entry(dtype="I32"),
        "unknown dtype": entry(dtype="X"),
        "no dtype": json.dumps({**header, "params/w": {"shape": [2, 3]}}).encode(),
        "no entry": json.dumps({**header, "params/w": None}).encode(),
        "twice": twice.encode(),
        "metadata": json.dumps({"__metadata__": {"format": "pt", "_target_": "os.system"}, **header}).encode(),
        "odd metadata": json.dumps({"__metadata__": {"a": [1]}, **header}).encode(),
        "deep": json.dumps({**header, "x": 0})[:-2].encode() + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a list": b"[]",
        "no json": b"hello",
        "no text": b"\xff\xfe" * 100,
        "empty": b"",
        "spaces": json.dumps(header).encode() + b" " * 1_000_000,
        "many": json.dumps({f"x{n}": {**w, "data_offsets": [0, 0], "shape": [0]} for n in range(20_000)}).encode(),
    }
    files = {name: tensors(text, data) for name, text in headers.items()}
    lengths = {
        "2**63": 2**63,
        "2**64 - 1": 2**64 - 1,
        "all": len(raw),
        "one too many": len(raw) - 7,
        "zero": 0,
        "100 MB": 10**8,
    }
    files |= {f"length {name}": length.to_bytes(8, "little") + raw[8:] for name, length in lengths.items()}
    files |= {"gap": tensors(header, data + b"\0" * 8), "nothing": b"", "short": raw[:7]}
    # What is true of a header is said of it: only the leaves themselves are left to tell.
    return {name: (fitting(content, file), file) for name, file in files.items()}


def huge_manifests(content):
    """Make manifests of many megabytes: name -> content."""
    line = content["leaves"]["params/w"]
    return {
        "leaves": with_(content, leaves={f"params/{n:08d}": line for n in range(20_000)}),
        "text": with_(content, program=["x" * 10_000_000]),
        "lists": with_(content, strides=[[]] * 500_000),
        "objects": with_(content, memory=[{}] * 500_000),
    }


@pytest.fixture(scope="module")
def refused(good):
    """Show all hostile checkpoints to one process with little memory: name -> what it says."""
    directory, content, raw = good
    with TemporaryDirectory() as folder:
        made = {}
        for name, changed in hostile_manifests(content).items():
            made[f"manifest {name}"] = signed(changed), raw
        for name, changed in huge_manifests(content).items():
            made[f"huge {name}"] = signed(changed), raw
        for name, text in hostile_texts(content).items():
            made[f"text {name}"] = signed(text), raw
        for name, (changed, file) in hostile_headers(content, raw).items():
            made[f"header {name}"] = signed(changed), file
        for number, (manifest, file) in enumerate(made.values()):
            forge(f"{folder}/{number}", manifest, file)
        said = shown(300, directory, [f"{folder}/{number}" for number in range(len(made))])
        yield dict(zip(made, said, strict=True))


def shown(allowed, good, bad):
    """Let a process that may take so many MiB more than for a good one look at checkpoints."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.refusing", str(allowed), str(good), *map(str, bad)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert 0 == ended.returncode, ended.stderr[-2000:]
    return [line.partition("\t")[2] for line in ended.stdout.splitlines()]


SOUND_AFTER_ALL = {
    # These change nothing that is loaded, and say nothing that is untrue.
    "header metadata",
    "header spaces",
}


def test_malice_is_refused_in_one_line_and_with_little_memory(refused):
    """Names that lead elsewhere, absurd sizes, nesting, offsets: 300 MiB more than for a good one are enough."""
    assert len(refused) > 200
    believed = {name for name, said in refused.items() if not said.startswith("CheckpointError 1 ")}

    assert SOUND_AFTER_ALL == believed
    assert {pr.digest(STATE)} == {refused[name] for name in SOUND_AFTER_ALL}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


def places(content, path=()):
    """List the places of a JSON value: each value in it, at any depth."""
    yield path
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*path, key))


def placed(content, path, value):
    """Put a value at a place."""
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = placed(content[path[0]], path[1:], value)
    return copy


TRIES = settings(
    max_examples=200 * max(1, settings.default.max_examples // 100), suppress_health_check=[HealthCheck.too_slow]
)


@TRIES
@given(data=st.data(), value=ANY)
def test_any_value_anywhere_is_refused_or_harmless(good, data, value):
    """Signed again: what is loaded then is the state, bit for bit, and its manifest holds what its fields may hold."""
    _, content, raw = good
    path = data.draw(st.sampled_from([place for place in places(content) if place]))
    with TemporaryDirectory() as folder:
        forge(f"{folder}/a", signed(placed(content, path, value)), raw)
        try:
            manifest, state = read_manifest(f"{folder}/a"), pr.load(f"{folder}/a")
        except CheckpointError as error:
            assert 1 == len(str(error).splitlines())  # noqa: PT017 - which of the two happens depends on the value
            return

    assert pr.digest(STATE) == pr.digest(state)
    assert manifest == Manifest.parse(manifest.text(), "here")


@TRIES
@given(data=st.data(), value=ANY)
def test_any_value_anywhere_in_a_header_is_refused_or_harmless(good, data, value):
    """Though the manifest says what is true of the file."""
    _, content, raw = good
    header, rest = header_of(raw)
    path = data.draw(st.sampled_from([place for place in places(header) if place]))
    file = tensors(placed(header, path, value), rest)
    with TemporaryDirectory() as folder:
        forge(f"{folder}/a", signed(fitting(content, file)), file)
        try:
            state = pr.load(f"{folder}/a")
        except CheckpointError as error:
            assert 1 == len(str(error).splitlines())  # noqa: PT017
            return

    assert pr.digest(STATE) == pr.digest(state)


def test_odd_names_are_names(tmp_path):
    """A leaf may be called anything; it is a key in a tree, and no file of that name is ever touched."""
    names = ["../../x", "/etc/passwd", "a\\b", "~", ".", "..", "a/b", "\u00e9", "x" * 300]
    state = counted(params={name: torch.ones(2) for name in names})
    pr.save(state, tmp_path / "in" / "a")

    assert () == pr.diff(state, pr.load(tmp_path / "in" / "a"))
    assert {"in", "a", "manifest.json", "state.safetensors"} == {path.name for path in tmp_path.rglob("*")}
