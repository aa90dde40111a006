"""Saving: a state becomes a checkpoint directory."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import safetensors
import tensordict
import torch
from torch import Tensor

import purerun
from purerun import identity, program
from purerun.checkpoint.error import CheckpointError
from purerun.checkpoint.manifest import JSON, MANIFEST, TENSORS, File, Manifest
from purerun.checkpoint.publish import publish, sync
from purerun.checkpoint.tensors import header_digest, on_host, strides, write_tensors
from purerun.checkpoint.tree import empty_trees
from purerun.state import State

COUNTERS = ("epoch", "iter", "cursor", "seed")


def save(
    state: State,
    directory: str | os.PathLike[str],
    *,
    recipe: JSON = None,
    parent: str | None = None,
    memory: Mapping[str, JSON] | None = None,
) -> Manifest:
    """Write a state down as a checkpoint directory: the whole of it, or nothing.

    A checkpoint that is there already is replaced; until the new one is complete on the
    disk, the old one is what `load` finds.

    Args:
        state: what to save; all of it but the report of the last step.
        directory: where; made with its parents.
        recipe: the run as plain data, kept for comparison.
        parent: the digest of the checkpoint before this one.
        memory: what sinks remember: label -> plain data.

    Returns:
        What was written into the manifest.

    Raises:
        CheckpointError: it cannot be written there, or holds what a file cannot.

    >>> import tempfile, purerun as pr
    >>> state = pr.testing.counted(iter=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = pr.save(state, folder + "/a")
    ...     pr.digest(pr.load(folder + "/a")) == pr.digest(state) == manifest.digest
    True
    """
    found = dict(identity.named_leaves(state))
    leaves = {name: on_host(name, leaf) for name, leaf in found.items()}
    lines = {name: identity.describe(leaf) for name, leaf in leaves.items()}
    mark = bytes(identity.read_bytes(leaves["fingerprint"])).hex() if "fingerprint" in leaves else None

    def fill(folder: Path) -> Manifest:
        manifest = Manifest(
            counters={name: int(leaves[name]) for name in COUNTERS if name in leaves and not leaves[name].ndim},
            digest=identity.join({name: line for name, line in lines.items() if name not in identity.UNHASHED}),
            parent=parent,
            fingerprint=mark,
            # Whoever made the state in this process, or loaded it, has left the text there.
            program=program.recall(mark) if mark else None,
            recipe=recipe,
            memory=dict(memory or {}),
            versions=_versions(),
            files={TENSORS: _write_leaves(folder / TENSORS, leaves)},
            leaves=lines,
            strides=strides(found),
            empty=empty_trees(state),
        )
        _write_manifest(folder / MANIFEST, manifest)
        return manifest

    place = Path(directory).resolve()
    try:
        return publish(place, fill)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be written: {error}; free space or choose another place") from error


def _write_leaves(file: Path, leaves: Mapping[str, Tensor]) -> File:
    write_tensors(file, leaves)
    sync(file)
    return File(bytes=file.stat().st_size, header=header_digest(file))


def _write_manifest(file: Path, manifest: Manifest) -> None:
    file.write_text(manifest.text(), encoding="ascii")
    sync(file)


def _versions() -> dict[str, str]:
    libraries = {module.__name__: str(module.__version__) for module in (purerun, torch, tensordict, safetensors)}
    return {"python": platform.python_version(), **libraries}
