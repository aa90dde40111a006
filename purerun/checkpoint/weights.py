"""Weights alone: the parameters and buffers of a model by their names, from whatever file holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from purerun import identity
from purerun.checkpoint import remote
from purerun.checkpoint.error import CheckpointError
from purerun.checkpoint.foreign import ENDINGS, read_foreign
from purerun.checkpoint.locate import find
from purerun.checkpoint.manifest import TENSORS, Manifest, read_manifest
from purerun.checkpoint.tensors import read_tensors
from purerun.population import SEEDS

SAFE = ".safetensors"


def read_weights(path: str | os.PathLike[str], weights: str = "", *, member: int | None = None) -> dict[str, Tensor]:
    """Read weights, named as in a `state_dict`, each in memory of its own on the CPU.

    Nothing in a file is ever run: a `.pth` is read by torch's restricted unpickler, and only
    tensors are taken from it.  Of a checkpoint of purerun, what is taken is verified.

    Args:
        path: a checkpoint or a run, a `.safetensors` file, or a file of `torch.save` (`.pth`, `.pt`, `.ckpt`,
            `.bin`): a `state_dict`, or a checkpoint of MMEngine, MMCV, Lightning, timm or torchvision; or
            the URL of one of these.
        weights: which of them: "" for the trained ones (of a foreign file, for those that it itself calls
            its weights), or the name of an entry that holds others, such as "ema" for an average.
        member: of the checkpoint of a population, the number of the one whose weights they are.

    Raises:
        CheckpointError: there is no such file, it has no such weights, it cannot be believed, or it is a population
            and no member is named.

    >>> import tempfile
    >>> state = pr.testing.counted(params={"w": torch.ones(2)}, ema={"params": {"w": torch.zeros(2)}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.save(state, folder + "/a")
    ...     read_weights(folder + "/a"), read_weights(folder + "/a", "ema")
    ({'w': tensor([1., 1.])}, {'w': tensor([0., 0.])})
    """
    with remote.fetched(path) as place:
        if member is not None and place.is_file():
            raise CheckpointError(f"{place}: expected a population to take member {member} of, found a file of weights")
        if place.suffix == SAFE:
            return _read_plain(_file(place), weights)
        if place.suffix in ENDINGS and not place.is_dir():
            return read_foreign(_file(place), weights)
        if place.is_file():
            raise CheckpointError(
                f"{place}: expected a checkpoint, a run, or a file that ends in {', '.join((SAFE, *ENDINGS))}; "
                "rename it if it is one"
            )
        return _read_own(find(place), weights, member)


def _file(place: Path) -> Path:
    if not place.is_file():
        raise CheckpointError(
            f"{place}: expected a file with weights, found {'a folder' if place.exists() else 'none'}"
        )
    return place


def _read_plain(file: Path, weights: str) -> dict[str, Tensor]:
    if weights:
        raise CheckpointError(f"{file}: has one set of weights, and no {weights!r}; leave the name out")
    try:
        with safe_open(file, framework="pt") as source:
            return {name: source.get_tensor(name).clone() for name in source.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{file}: expected a sound {SAFE} file: {error}; it is damaged") from error


def _read_own(directory: Path, weights: str, member: int | None) -> dict[str, Tensor]:
    """Read parameters and buffers of a checkpoint, and no byte of anything else."""
    manifest = read_manifest(directory)
    file = directory / TENSORS
    chosen = dict(_places(manifest, weights))
    if weights and not any(path.startswith(f"{weights}/params/") for path in chosen.values()):
        known = sorted({path.partition("/params/")[0] for path in manifest.leaves if "/params/" in path})
        raise CheckpointError(
            f"{directory}: expected averaged weights in `{weights}`, found {', '.join(known) or 'none'}; "
            "choose one of those, train with pr.EMA(0.999), or take the trained ones"
        )
    mapped = read_tensors(file, manifest.kinds())
    found = {name: _own(file, manifest, path, mapped[path]) for name, path in chosen.items()}
    return _of_member(directory, found, manifest, member)


def _of_member(
    directory: Path, tensors: dict[str, Tensor], manifest: Manifest, member: int | None
) -> dict[str, Tensor]:
    """Take the weights of one member of a population; those of a single run as they are."""
    seeds = manifest.kinds().get(SEEDS)
    if seeds is None:
        if member is not None:
            raise CheckpointError(f"{directory}: expected a population to take member {member} of, found a single run")
        return tensors
    (count,) = seeds.shape
    if member is None or not 0 <= member < count:
        got = "none" if member is None else member
        raise CheckpointError(
            f"{directory}: expected the number of a member, 0 to {count - 1}, to take the weights of, got {got}; write "
            "them down first: purerun export RUN FILE --member 0"
        )
    return {name: tensor[member].clone() for name, tensor in tensors.items()}


def _places(manifest: Manifest, weights: str) -> Iterator[tuple[str, str]]:
    """List name and path of each tensor; an average has those only that it averages, the others are the model's."""
    average = (f"{weights}/params/", f"{weights}/buffers/") if weights else ()
    for tree in ("params/", "buffers/", *average):
        for path in manifest.leaves:
            if path.startswith(tree):
                yield path.removeprefix(tree).replace("~1", "/").replace("~0", "~"), path


def _own(file: Path, manifest: Manifest, path: str, mapped: Tensor) -> Tensor:
    leaf = mapped.clone()
    found = identity.describe(leaf)
    if found != manifest.leaves[path]:
        raise CheckpointError(
            f"{file}: expected {manifest.leaves[path]} at {path}, found {found}; it is damaged, use an older checkpoint"
        )
    return leaf
