"""Loading: a checkpoint directory becomes a state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from purerun import identity, program
from purerun.checkpoint.error import CheckpointError
from purerun.checkpoint.layout import iteration_of
from purerun.checkpoint.locate import find
from purerun.checkpoint.manifest import TENSORS, Manifest, read_manifest
from purerun.checkpoint.remote import fetched
from purerun.checkpoint.tensors import header_digest, read_tensors
from purerun.checkpoint.tree import grow
from purerun.state import REPORT, State, seal

_THREADS = min(4, os.cpu_count() or 1)  # hashing lets go of the interpreter; more would only wait for the memory


def load(path: str | os.PathLike[str], *, verify: bool = True) -> State:
    """Read a state back, bit for bit, on the CPU.

    Args:
        path: a checkpoint directory, or a run directory, whose `last` checkpoint is meant; or a URL of one.
        verify: copy every leaf into memory of its own and hash the copy; what was believed once stays
            so, whatever happens to the file.  Without it only names, shapes and sizes are checked, and the
            leaves are the file itself, mapped into memory: nothing is read before it is used.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.

    >>> import tempfile, purerun as pr
    >>> state = pr.testing.counted(iter=3, params={"w": torch.ones(2)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.save(state, folder + "/a")
    ...     pr.diff(pr.load(folder + "/a"), state)
    ()
    """
    with fetched(path) as place:
        return _loaded(find(place), verify=verify)


def _loaded(directory: Path, *, verify: bool) -> State:
    manifest = read_manifest(directory)
    file = directory / TENSORS
    if verify and header_digest(file) != manifest.files[TENSORS].header:
        raise CheckpointError(f"{file}: its header was changed; it is damaged, use an older checkpoint")
    leaves = read_tensors(file, manifest.kinds())
    if verify:
        leaves = _verified(file, manifest, leaves)
        _same_digest(directory, manifest)
        _same_counters(directory, manifest, leaves)
    if manifest.program is not None:
        program.fingerprint(manifest.program)  # so that a loop with another step can say what differs
    try:
        return seal({**grow(leaves, manifest.empty), REPORT: {}})
    except ValueError as error:
        raise CheckpointError(f"{directory}: not the leaves of a state: {error}") from error


def _verified(file: Path, manifest: Manifest, mapped: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy leaves, and compare what was copied with the manifest; several at a time."""

    def own(name: str) -> Tensor:
        leaf = mapped[name].clone()
        found = identity.describe(leaf)
        if found != manifest.leaves[name]:
            raise CheckpointError(
                f"{file}: expected {manifest.leaves[name]} at {name}, found {found}; "
                "it is damaged, use an older checkpoint"
            )
        return leaf

    with ThreadPoolExecutor(max_workers=_THREADS) as threads:
        return dict(zip(mapped, threads.map(own, mapped), strict=True))


def _same_digest(directory: Path, manifest: Manifest) -> None:
    found = identity.join({name: line for name, line in manifest.leaves.items() if name not in identity.UNHASHED})
    if found != manifest.digest:
        raise CheckpointError(
            f"{directory}: expected the digest {manifest.digest}, its leaves give {found}; use an older checkpoint"
        )


def _same_counters(directory: Path, manifest: Manifest, leaves: Mapping[str, Tensor]) -> None:
    """Compare what a manifest says of the place in the run with the state, and with the name of the checkpoint."""
    for name, counter in manifest.counters.items():
        if name not in leaves or leaves[name].ndim or int(leaves[name]) != counter:
            found = leaves[name].tolist() if name in leaves else "none"
            raise CheckpointError(f"{directory}: expected {name} {counter}, found {found}; use an older checkpoint")
    named = iteration_of(directory.name)
    if named is not None and named != manifest.counters.get("iter"):
        raise CheckpointError(
            f"{directory}: expected iteration {named} by its name, found {manifest.counters.get('iter')}; "
            "it is another checkpoint, moved here; use an older one"
        )
