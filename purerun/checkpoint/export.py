"""Weights written down for others: a plain file that loads without purerun."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, TensorSpec, serialize_file
from torch import Tensor

from purerun.checkpoint.error import CheckpointError, SaveError, reading
from purerun.checkpoint.locate import find
from purerun.checkpoint.manifest import read_manifest
from purerun.checkpoint.place import is_url, local
from purerun.checkpoint.publish import sync
from purerun.checkpoint.remote import fetched
from purerun.checkpoint.tensors import on_host
from purerun.checkpoint.weights import SAFE, read_weights
from purerun.naming import Naming

_PICKLED = (".pth", ".pt")


def export(
    path: str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    weights: str = "",
    member: int | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write weights as a plain file, which a module loads with `load_state_dict(..., strict=True)`.

    The names are those of the module's `state_dict`: a tied tensor is there under each of its
    names, a buffer that no file has (`persistent=False`) is not.  The checkpoint itself says which these
    are, in the text of the step that made it.

    Args:
        path: what `read_weights` reads: a checkpoint or a run above all.
        file: where: `.safetensors`, or `.pth` and `.pt` for `torch.save`; made with its folders.
        weights: which weights: "" for the trained ones, "ema" for an average.
        member: of a population, the number of the one whose weights they are.
        overwrite: replace a file that is there.

    Returns:
        The names that were written.

    Raises:
        SaveError: it cannot be written.
        CheckpointError: the weights cannot be read, or the place is taken.

    >>> import tempfile
    >>> model = torch.nn.Linear(2, 1)
    >>> state = pr.TrainStep(model, lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1)).init(seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.save(state, folder + "/a")
    ...     _ = export(folder + "/a", folder + "/a.pth")
    ...     model.load_state_dict(torch.load(folder + "/a.pth", weights_only=True))
    <All keys matched successfully>
    """
    place = _vacant(file, overwrite=overwrite)
    tensors = _named(path, weights, member)
    _publish(place, _writer(place, tensors))
    return tuple(tensors)


def publish_weights(
    checkpoint: str | os.PathLike[str], directory: str | os.PathLike[str], name: str, weights: str = ""
) -> Path:
    """Write weights to be handed on: `NAME-1a2b3c4d.safetensors`, named by the sha256 of its own bytes.

    The same weights make the same file, and others never take its place.

    Args:
        checkpoint: a checkpoint, or a run.
        directory: where the file goes; made with its parents.
        name: how the file's name begins.
        weights: which weights: "" for the trained ones, "ema" for an average.

    Returns:
        The file.

    Raises:
        SaveError: it cannot be written.
        CheckpointError: the weights cannot be read, or the name is no plain one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.save(pr.testing.counted(params={"w": torch.ones(2)}), folder + "/a")
    ...     publish_weights(folder + "/a", folder, "net").name
    'net-...safetensors'
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise CheckpointError(f"expected a plain name for published weights, got {name!r}; use letters, digits, -._")
    place = local(directory) / f"{name}{SAFE}"
    tensors = _named(checkpoint, weights)
    return _publish(place, lambda fresh: _write_safe(fresh, tensors), _marked)


def _named(path: str | os.PathLike[str], weights: str, member: int | None = None) -> dict[str, Tensor]:
    """Read weights under the names of a `state_dict`."""
    with fetched(path) as place:
        tensors = read_weights(place, weights, member=member)
        # A file of others says nothing of the kind: its names are those that it has.
        text = None if place.is_file() else read_manifest(find(place)).program
    named = Naming.told(text or "").spread(tensors)
    return {name: on_host(name, tensor) for name, tensor in sorted(named.items())}


def _vacant(file: str | os.PathLike[str], *, overwrite: bool) -> Path:
    place = Path() if is_url(file) else local(file)
    if place.suffix not in (SAFE, *_PICKLED):
        endings = ", ".join((SAFE, *_PICKLED))
        raise CheckpointError(f"{file}: expected a file of this machine that ends in {endings}; choose another name")
    with reading(file):
        if place.is_dir() or (place.exists() and not overwrite):
            what = "a folder" if place.is_dir() else "a file"
            raise CheckpointError(f"{file}: {what} is there; choose another name, or replace a file with --overwrite")
    return place


def _writer(place: Path, tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
    return lambda fresh: _write_safe(fresh, tensors) if place.suffix == SAFE else _write_pickled(fresh, tensors)


def _write_safe(file: Path, tensors: Mapping[str, Tensor]) -> None:
    specs = {name: _spec(name, tensor) for name, tensor in tensors.items()}
    # What readers of other libraries ask for before they believe that it holds torch's tensors.
    serialize_file(specs, file, metadata={"format": "pt"})


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    try:
        return TensorSpec(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=list(tensor.shape),
            data_ptr=tensor.const_data_ptr(),  # pyrefly: ignore[missing-attribute]
            data_len=tensor.numel() * tensor.element_size(),
        )
    except SafetensorError as error:
        raise CheckpointError(
            f"expected a dtype that {SAFE} has at {name}, got {tensor.dtype}; write a .pth"
        ) from error


def _write_pickled(file: Path, tensors: Mapping[str, Tensor]) -> None:
    with file.open("wb") as stream:
        # Plain tensors in a plain dict, for modules without purerun: `torch.load(weights_only=True)` reads it.
        torch.save(dict(tensors), stream)  # noqa: TID251


def _publish(place: Path, write: Callable[[Path], None], name: Callable[[Path], str] | None = None) -> Path:
    """Write a file under another name beside its place, make it durable, and rename it."""
    fresh = place.with_name(f".{place.name}.new")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write(fresh)
        fresh.chmod(place.parent.stat().st_mode & 0o666)  # safetensors makes files for their owner alone
        sync(fresh)
        final = place.with_name(name(fresh)) if name else place
        fresh.replace(final)
        sync(place.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise SaveError(f"{place}: cannot be written: {error}; free space or choose another place") from error
    finally:
        with suppress(OSError):  # what went wrong is told already
            fresh.unlink(missing_ok=True)
    return final


def _marked(fresh: Path) -> str:
    with fresh.open("rb") as stream:
        mark = hashlib.file_digest(stream, "sha256").hexdigest()[:8]
    return f"{fresh.name.removeprefix('.').removesuffix(f'{SAFE}.new')}-{mark}{SAFE}"
