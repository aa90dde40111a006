"""Saving: a state becomes a checkpoint directory."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import safetensors
import tensordict
import torch
from torch import Tensor

from purerun import identity, program
from purerun.checkpoint.error import writing
from purerun.checkpoint.manifest import JSON, MANIFEST, TENSORS, File, Manifest, encoded
from purerun.checkpoint.publish import publish, sync
from purerun.checkpoint.remote import sent
from purerun.checkpoint.tensors import header_digest, on_host, strides, write_tensors
from purerun.checkpoint.tree import empty_trees
from purerun.hooks.scores import judged
from purerun.state import State
from purerun.version import __version__

COUNTERS = ("epoch", "iter", "cursor", "seed")


def save(
    state: State,
    directory: str | os.PathLike[str],
    *,
    recipe: JSON = None,
    parent: str | None = None,
    changes: Sequence[Mapping[str, JSON]] = (),
    memory: Mapping[str, JSON] | None = None,
    threads: int = 2,
) -> Manifest:
    """Write a state down as a checkpoint directory: the whole of it, or nothing.

    A checkpoint that is there already is replaced; until the new one is complete on the
    disk, the old one is what `load` finds.

    Args:
        state: what to save; all of it but the report of the last step.
        directory: where; made with its parents.  Or a URL, for which it is made here and sent.
        recipe: the run as plain data, kept for comparison.
        parent: the digest of the checkpoint before this one.
        changes: how the recipe was changed on the way, as the manifest keeps it.
        memory: what sinks remember: label -> plain data.
        threads: 2 hashes while it writes; 1 takes longer, and leaves the other cores to whoever trains.

    Returns:
        What was written into the manifest.

    Raises:
        SaveError: it cannot be written there.
        CheckpointError: it holds what a file cannot.

    >>> import tempfile, purerun as pr
    >>> state = pr.testing.counted(iter=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = pr.save(state, folder + "/a")
    ...     pr.digest(pr.load(folder + "/a")) == pr.digest(state) == manifest.digest
    True
    """
    found = dict(identity.named_leaves(state))
    leaves = {name: on_host(name, leaf) for name, leaf in found.items()}
    known = _known(state, found) | {
        "recipe": recipe,
        "parent": parent,
        "changes": [dict(change) for change in changes],
        "memory": dict(memory or {}),
    }

    def fill(folder: Path) -> Manifest:
        manifest = Manifest(**_written(folder, leaves, threads), **known)
        _write_manifest(folder / MANIFEST, manifest)
        return manifest

    with sent(directory) as place, writing(place):
        # Not Path.resolve, which has an error of its own for links in a circle.
        return publish(Path(os.path.realpath(place)), fill)


def _known(state: State, leaves: Mapping[str, Tensor]) -> dict[str, Any]:
    """Say what is known of a state before any of it is written."""
    mark = bytes(identity.read_bytes(leaves["fingerprint"])).hex() if "fingerprint" in leaves else None
    return {
        "counters": {name: int(leaves[name]) for name in COUNTERS if name in leaves and not leaves[name].ndim},
        "scores": {name: encoded(score) for name, score in judged(state).items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": mark,
        # Whoever made the state in this process, or loaded it, has left the text there.
        "program": program.recall(mark) if mark else None,
        "versions": _versions(),
        "strides": strides(leaves),
        "empty": empty_trees(state),
    }


def _written(folder: Path, leaves: Mapping[str, Tensor], threads: int) -> dict[str, Any]:
    """Write leaves into a folder, and say what was written."""

    def describe() -> dict[str, str]:
        return {name: identity.describe(leaf) for name, leaf in leaves.items()}

    with ThreadPoolExecutor(max_workers=1) as hashing:
        # Both wait for the memory, not for each other.
        early = hashing.submit(describe) if threads > 1 else None
        files = {TENSORS: _write_leaves(folder / TENSORS, leaves)}
        lines = describe() if early is None else early.result()
    digest = identity.join({name: line for name, line in lines.items() if name not in identity.UNHASHED})
    return {"files": files, "leaves": lines, "digest": digest}


def _write_leaves(file: Path, leaves: Mapping[str, Tensor]) -> File:
    write_tensors(file, leaves)
    # The library makes files for their owner alone; readable is what the folder is.
    file.chmod(file.parent.stat().st_mode & 0o666)
    sync(file)
    return File(bytes=file.stat().st_size, header=header_digest(file))


def _write_manifest(file: Path, manifest: Manifest) -> None:
    file.write_text(manifest.text(), encoding="ascii")
    sync(file)


def _versions() -> dict[str, str]:
    libraries = {module.__name__: str(module.__version__) for module in (torch, tensordict, safetensors)}
    return {"python": platform.python_version(), "purerun": __version__, **libraries}
