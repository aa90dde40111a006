"""The tensors of a checkpoint: named leaves to one safetensors file, and back, bit for bit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file
from torch import Tensor

from purerun.checkpoint.error import CheckpointError, SaveError, brief
from purerun.checkpoint.manifest import Kind
from purerun.identity import read_bytes

DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
"""Every dtype by its name: a file chooses from this table and nothing else."""

# What every reader of safetensors knows.  Any other dtype is stored as its bytes, uint8 in one
# row; the manifest says what it was.
_FLOATS = {"float64", "float32", "float16", "bfloat16"}
_WHOLE = {"int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"}
_RESERVED = "__metadata__"
_NATIVE = frozenset(_FLOATS | _WHOLE)


def on_host(name: str, tensor: Tensor) -> Tensor:
    """Get a leaf as it is stored: dense, row-major, in the memory of the CPU; without a copy if it is so already.

    Raises:
        CheckpointError: it has no plain bytes, or bytes or a name that no file gives back.
    """
    if name == _RESERVED:
        raise CheckpointError(f"expected another name than {name}, which the format keeps for itself; rename that leaf")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type == "meta":
        raise CheckpointError(
            f"expected a dense tensor with data at {name}, got {tensor.dtype} of layout {tensor.layout} "
            f"on {tensor.device}; make it dense before it enters the state"
        )
    here = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    if here.dtype == torch.bool and bytes(read_bytes(here)).strip(b"\0\1"):
        raise CheckpointError(
            f"expected bytes 0 and 1 in the bool tensor {name}, found others, which change when it is copied; "
            "make it anew: bytes.view(torch.uint8) != 0"
        )
    return here


def strides(leaves: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Say how leaves lie in memory, where it is dense but not row-major (channels last, for one).

    >>> strides({"a": torch.zeros(2, 3), "b": torch.zeros(2, 3).t()})
    {'b': [1, 3]}
    """
    kept = {name: torch.empty_like(leaf, device="meta").stride() for name, leaf in leaves.items()}
    plain = {name: torch.empty(leaf.shape, device="meta").stride() for name, leaf in leaves.items()}
    return {name: list(found) for name, found in kept.items() if found != plain[name]}


def write_tensors(file: Path, leaves: Mapping[str, Tensor]) -> None:
    """Write leaves that are on the host.

    Reads through constant pointers, so that copy-on-write memory stays shared.
    """
    stored = {name: _stored(leaf) for name, leaf in leaves.items()}
    specs = {
        name: TensorSpec(
            dtype=_name(leaf.dtype),
            shape=list(leaf.shape),
            data_ptr=leaf.const_data_ptr(),  # pyrefly: ignore[missing-attribute]
            data_len=leaf.numel() * leaf.element_size(),
        )
        for name, leaf in stored.items()
    }
    try:
        serialize_file(specs, file, metadata=None)
    except SafetensorError as error:
        raise SaveError(f"{file}: cannot be written: {error}; is the disk full?") from error


def read_tensors(file: Path, kinds: Mapping[str, Kind]) -> dict[str, Tensor]:
    """Map a file into memory: name -> leaf, none of it copied or even read yet.

    The mapping is private: nothing that is written into a leaf reaches the file.  What happens to
    the file reaches a leaf.

    Args:
        file: what `write_tensors` wrote.
        kinds: name -> what is expected; no others may be there.

    Raises:
        CheckpointError: the file is damaged, or other leaves are in it.
    """
    try:
        with safe_open(file, framework="pt") as source:
            _same_names(file, set(source.keys()), set(kinds))
            return {name: _restored(file, name, source.get_tensor(name), kind) for name, kind in kinds.items()}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{file}: {brief(error)}; it is damaged, use an older checkpoint") from error


def header_digest(file: Path) -> str:
    """Hash the header of a safetensors file: its length (8 bytes, little-endian) and its JSON.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
            # A damaged length may be anything; safetensors itself refuses headers of more than 100 MB.
            return hashlib.sha256(head + stream.read(min(int.from_bytes(head, "little"), 100_000_000))).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}; use an older checkpoint") from error


def _stored(leaf: Tensor) -> Tensor:
    return leaf if _name(leaf.dtype) in _NATIVE else leaf.reshape(-1).view(torch.uint8)


def _restored(file: Path, name: str, found: Tensor, kind: Kind) -> Tensor:
    wanted = DTYPES.get(kind.dtype)
    if wanted is None:
        raise CheckpointError(f"{file}: {name} is of {kind.dtype}, which this torch does not have; use a newer one")
    if (
        kind.dtype not in _NATIVE
        and found.dtype == torch.uint8
        and found.numel() == math.prod(kind.shape) * wanted.itemsize
    ):
        found = _aligned(found, wanted.itemsize).view(wanted).reshape(kind.shape)
    if found.dtype != wanted or tuple(found.shape) != kind.shape:
        raise CheckpointError(
            f"{file}: expected {kind.dtype} {list(kind.shape)} at {name}, found {_name(found.dtype)} "
            f"{list(found.shape)}; it is damaged, use an older checkpoint"
        )
    found = _aligned(found, wanted.itemsize)
    return found if kind.strides is None else _laid_out(file, name, found, kind.strides)


def _aligned(leaf: Tensor, size: int) -> Tensor:
    """Copy a mapped leaf that does not begin at a multiple of its items' size: torch's kernels would crash on it."""
    return leaf if leaf.data_ptr() % size == 0 else leaf.clone()


def _laid_out(file: Path, name: str, leaf: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Put the values into memory in another order."""
    order = sorted(zip(strides, leaf.shape, strict=False))
    steps = [stride for stride, size in order if size > 1]
    sizes = [size for _, size in order if size > 1]
    if len(strides) != leaf.ndim or steps != [math.prod(sizes[:i]) for i in range(len(sizes))]:
        raise CheckpointError(f"{file}: {list(strides)} are no dense strides for {list(leaf.shape)} at {name}")
    return torch.empty_strided(leaf.shape, strides, dtype=leaf.dtype).copy_(leaf)


def _same_names(file: Path, found: set[str], wanted: set[str]) -> None:
    if odd := sorted(found ^ wanted):
        raise CheckpointError(
            f"{file}: the leaves {brief(', '.join(odd[:3]))} are not both in the file and in its manifest; "
            "it is damaged, use an older checkpoint"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
