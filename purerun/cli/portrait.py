"""What a run or a checkpoint is, as text for people, from what manifests say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import tomli_w

from purerun.checkpoint import Kind, Manifest, load, name_of, pointers, read_manifest
from purerun.checkpoint.tensors import DTYPES
from purerun.cli.table import size, table
from purerun.history import Point, Timeline, timeline

_SETTINGS = (
    "model",
    "loss",
    "train",
    "optimizer",
    "schedule",
    "wrappers",
    "hooks",
    "epochs",
    "iters",
    "seed",
    "device",
)
_DULL = ("class", "entries", "workers", "prefetch", "persistent")
_WIDEST = 100


def run(directory: Path, *, verify: bool) -> Iterator[str]:
    """Tell what a run is: its settings in short, its checkpoints, where it comes from."""
    line = timeline(directory, believe=load if verify else read_manifest)
    room = size(sum(_bytes(point.manifest) for point in line.points))
    yield f"{directory}: a run with {len(line.points)} good checkpoints, {room}"
    yield f", and {len(line.damaged)} damaged\n" if line.damaged else "\n"
    if line.points:
        yield from _settings(line.tip.manifest)
    yield "\ncheckpoints (every byte verified)\n" if verify else "\ncheckpoints\n"
    yield table(
        ["iter", "epoch", "created (UTC)", "size", "digest", "parent", "scores", ""],
        [*_rows(line)],
    )
    yield from (f"damaged: {why}\n" for why in line.damaged.values())
    if line.points:
        yield from ("\nlineage\n", *_lineage(line))


def checkpoint(directory: Path, *, verify: bool) -> Iterator[str]:
    """Tell what a checkpoint is: what its manifest says, its leaves, its recipe and its program."""
    manifest = read_manifest(directory)
    if verify:
        load(directory)
    counters = ", ".join(f"{name} {value}" for name, value in manifest.counters.items())
    yield f"{directory}: a checkpoint{', every byte verified' if verify else ''}\n"
    rows = {
        "counters": counters,
        "created": _when(manifest),
        "size": size(_bytes(manifest)),
        "digest": manifest.digest,
        "parent": manifest.parent or "none",
        "fingerprint": manifest.fingerprint or "none",
        "scores": _scores(manifest),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    yield from (f"  {name:<11}  {text}\n" for name, text in rows.items() if text)
    yield from (f"  {'changed':<11}  {text}\n" for text in _changes(manifest))
    yield "\nstate\n"
    yield table(["leaf", "dtype", "shape", "size"], _leaves(manifest.kinds()))
    if isinstance(manifest.recipe, dict):
        yield f"\nrecipe\n{tomli_w.dumps(manifest.recipe)}"
    if manifest.program is not None:
        yield f"\nprogram\n{manifest.program}\n"


def _settings(manifest: Manifest) -> Iterator[str]:
    """Write the settings that people ask for first, a line each."""
    if isinstance(manifest.recipe, dict):
        told = {name: manifest.recipe[name] for name in _SETTINGS if manifest.recipe.get(name) not in (None, [], "")}
        yield from (f"  {name:<9}  {_cut(_short(value))}\n" for name, value in told.items())


def _rows(line: Timeline) -> Iterator[list[str]]:
    """Make the rows of the table of checkpoints."""
    names: dict[str, list[str]] = {}
    for pointer, name in pointers(line.run).items():
        names.setdefault(name, []).append(pointer)
    good = {point.iter: point for point in line.points}
    for iter in sorted({*good, *line.damaged}):
        pointing = ", ".join(names.get(name_of(iter), []))
        if iter in good:
            yield [*_row(good[iter]), pointing]
        else:
            yield [str(iter), *["-"] * 5, "", ", ".join(filter(None, ("damaged", pointing)))]


def _row(point: Point) -> list[str]:
    manifest = point.manifest
    return [
        str(point.iter),
        str(manifest.counters.get("epoch", "-")),
        _when(manifest) or "-",
        size(_bytes(manifest)),
        manifest.digest[:8],
        (manifest.parent or "-")[:8],
        _scores(manifest),
    ]


def _lineage(line: Timeline) -> Iterator[str]:
    """Tell where a run comes from, and what was changed on its way."""
    first, tip = line.points[0].manifest, line.tip.manifest
    iter = line.points[0].iter
    if first.parent is None:
        yield "  begins anew\n"
    elif any(entry["iter"] == iter for entry in first.changes):
        yield f"  forked at iteration {iter}, from the state {first.parent}\n"
    else:
        yield f"  what came before iteration {iter} is gone; it followed the state {first.parent}\n"
    yield from (f"  {text}\n" for text in _changes(tip))


def _changes(manifest: Manifest) -> Iterator[str]:
    for entry in manifest.changes:
        pairs = (f"{path} {_short(old)} -> {_short(new)}" for path, (old, new) in entry["changes"].items())
        yield f"at iteration {entry['iter']}: {', '.join(pairs) or 'nothing was changed'}"


def _leaves(kinds: Mapping[str, Kind]) -> Iterator[list[str]]:
    """Make the rows of the table of leaves, grouped by the entries of the state."""
    for entry, paths in groupby(sorted(kinds), key=lambda path: path.partition("/")[0]):
        group = {path: kinds[path] for path in paths}
        if entry in group:
            yield _leaf(entry, group[entry])
        else:
            yield [entry, "", f"{len(group)} leaves", size(sum(map(_room, group.values())))]
            yield from (_leaf(f"  {path.partition('/')[2]}", kind) for path, kind in group.items())


def _leaf(name: str, kind: Kind) -> list[str]:
    return [name, kind.dtype, "x".join(map(str, kind.shape)) or "scalar", size(_room(kind))]


def _room(kind: Kind) -> int:
    return math.prod(kind.shape) * (DTYPES[kind.dtype].itemsize if kind.dtype in DTYPES else 0)


def _bytes(manifest: Manifest) -> int:
    return sum(file.bytes for file in manifest.files.values())


def _when(manifest: Manifest) -> str:
    return manifest.created[:19].replace("T", " ")


def _scores(manifest: Manifest) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in manifest.scores.items())


def _short(value: Any) -> str:
    """Write a part of a recipe in a few words: what is off or empty is left out."""
    match value:
        case dict():
            inner = (
                f"{key}={_short(below)}" for key, below in value.items() if key not in _DULL and not _is_off(below)
            )
            return f"{str(value.get('class', '')).rpartition('.')[2]}({', '.join(inner)})"
        case list():
            return f"[{', '.join(map(_short, value))}]"
        case float():
            return f"{value:.6g}"
        case None:
            return "none"
    return str(value)


def _is_off(value: Any) -> bool:
    return value is False or value in ("", [], {})


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 4]} ..."
