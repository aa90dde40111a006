"""Loading: a checkpoint directory becomes a state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from purerun import identity, program
from purerun.checkpoint.error import CheckpointError
from purerun.checkpoint.locate import find
from purerun.checkpoint.manifest import TENSORS, Manifest, read_manifest
from purerun.checkpoint.tensors import header_digest, read_tensors
from purerun.checkpoint.tree import grow
from purerun.state import REPORT, State, seal


def load(path: str | os.PathLike[str], *, verify: bool = True) -> State:
    """Read a state back, bit for bit, into memory of its own on the CPU.

    Args:
        path: a checkpoint directory, or a run directory, whose `last` checkpoint is meant.
        verify: hash what is read and compare; without it only names, shapes and sizes are checked.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.

    >>> import tempfile, purerun as pr
    >>> state = pr.testing.counted(iter=3, params={"w": torch.ones(2)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.save(state, folder + "/a")
    ...     pr.diff(pr.load(folder + "/a"), state)
    ()
    """
    directory = find(path)
    manifest = read_manifest(directory)
    file = directory / TENSORS
    if verify and header_digest(file) != manifest.files[TENSORS].header:
        raise CheckpointError(f"{file}: its header was changed; it is damaged, use an older checkpoint")
    leaves = dict(_verified(file, manifest) if verify else read_tensors(file, manifest.kinds()))
    if verify:
        _same_digest(directory, manifest)
    if manifest.program is not None:
        program.fingerprint(manifest.program)  # so that a loop with another step can say what differs
    try:
        return seal({**grow(leaves, manifest.empty), REPORT: {}})
    except ValueError as error:
        raise CheckpointError(f"{directory}: not the leaves of a state: {error}") from error


def _verified(file: Path, manifest: Manifest) -> Iterator[tuple[str, Tensor]]:
    for name, leaf in read_tensors(file, manifest.kinds()):
        found = identity.describe(leaf)
        if found != manifest.leaves[name]:
            raise CheckpointError(
                f"{file}: expected {manifest.leaves[name]} at {name}, found {found}; "
                "it is damaged, use an older checkpoint"
            )
        yield name, leaf


def _same_digest(directory: Path, manifest: Manifest) -> None:
    found = identity.join({name: line for name, line in manifest.leaves.items() if name not in identity.UNHASHED})
    if found != manifest.digest:
        raise CheckpointError(
            f"{directory}: expected the digest {manifest.digest}, its leaves give {found}; use an older checkpoint"
        )
