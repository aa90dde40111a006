"""What a state is worth comparing by: its digest, and the leaves in which two states differ."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from purerun.state import State, leaves

UNHASHED = ("fingerprint",)
"""Saved, but not part of the digest: the digest says *the same numbers*, not *the same program*."""


def digest(state: State) -> str:
    """Hash a state: 64 hex digits that are equal when, and only when, every saved bit is.

    sha256 over the lines `path dtype shape sha256-of-bytes` of all leaves in the order of
    their paths.  The report of the last step and the fingerprint are left out.

    >>> from purerun.state import seal
    >>> a = seal({"params": {"w": torch.zeros(2)}, "iter": torch.tensor(1)})
    >>> digest(a) == digest(a.replace(iter=1)), digest(a) == digest(a.replace(iter=2))
    (True, False)
    """
    return join(leaf_digests(state))


def leaf_digests(state: State) -> dict[str, str]:
    """Hash each hashed leaf by itself: path -> `dtype shape sha256`."""
    return {name: describe(tensor) for name, tensor in named_leaves(state) if name not in UNHASHED}


def named_leaves(state: State) -> Iterator[tuple[str, Tensor]]:
    """Walk over the saved leaves as (path joined by "/", tensor), sorted by path.

    >>> from purerun.state import seal
    >>> [name for name, _ in named_leaves(seal({"params": {"a.w": torch.zeros(1)}, "metrics": {}}))]
    ['params/a.w']
    """
    for path, tensor in leaves(state):
        # Escaped as in a JSON pointer (RFC 6901), so that no two paths share a name.
        yield "/".join(part.replace("~", "~0").replace("/", "~1") for part in path), tensor


def join(parts: dict[str, str]) -> str:
    """Hash the digests of leaves into the one of their state."""
    text = "".join(f"{name} {parts[name]}\n" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()


def describe(tensor: Tensor) -> str:
    """Say dtype, shape and sha256 of a tensor in one line.

    >>> describe(torch.zeros(2, 3))[:12]
    'float32 2x3 '
    """
    shape = "x".join(map(str, tensor.shape)) or "-"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape} {hashlib.sha256(read_bytes(tensor)).hexdigest()}"


def read_bytes(tensor: Tensor) -> memoryview:
    """Look at the bytes of a tensor on the CPU (row-major, the machine's byte order).

    Reads through the constant pointer: `.numpy()` would make a copy-on-write tensor
    copy its memory just to be looked at.
    """
    dense = tensor.detach().to("cpu", copy=False).resolve_conj().resolve_neg().contiguous()
    count = dense.numel() * dense.element_size()
    if not count:
        return memoryview(b"")
    buffer = (ctypes.c_ubyte * count).from_address(dense.const_data_ptr())  # pyrefly: ignore[missing-attribute]
    buffer._keeps_alive = dense  # type: ignore[attr-defined]
    return memoryview(buffer).cast("B").toreadonly()


@attrs.frozen
class LeafDiff:
    """How one leaf differs between two states.

    Attributes:
        path: where the leaf is.
        what: the difference in words.
        largest: the largest absolute difference, for leaves of one shape.
        count: how many elements differ.
    """

    path: str
    what: str
    largest: float = float("nan")
    count: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def diff(a: State, b: State) -> tuple[LeafDiff, ...]:
    """List the saved leaves in which two states differ, the fingerprint included.

    An empty result means the same bits everywhere (NaNs with the same bits are equal).

    >>> from purerun.state import seal
    >>> a = seal({"params": {"w": torch.zeros(2)}, "iter": torch.tensor(1)})
    >>> [str(d) for d in diff(a, a.replace(params={"w": torch.tensor([0.0, 0.5])}))]
    ['params/w: 1 of 2 elements differ, by at most 0.5']
    """
    left, right = dict(named_leaves(a)), dict(named_leaves(b))
    return tuple(_compare(name, left, right) for name in sorted({*left, *right}) if _differs(name, left, right))


def _differs(name: str, left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    a, b = left.get(name), right.get(name)
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return True
    return read_bytes(a) != read_bytes(b)


def _compare(name: str, left: dict[str, Tensor], right: dict[str, Tensor]) -> LeafDiff:
    a, b = left.get(name), right.get(name)
    if a is None or b is None:
        return LeafDiff(name, f"only in the {'second' if a is None else 'first'}")
    if a.dtype != b.dtype or a.shape != b.shape:
        return LeafDiff(name, f"{a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}")
    count = int((_rows(a) != _rows(b)).any(-1).sum())
    largest = float(_gap(a.cpu(), b.cpu()).max())
    how = f"by at most {largest:.6g}" if largest else "in their bits only (zeros or NaNs)"
    return LeafDiff(name, f"{count} of {a.numel()} elements differ, {how}", largest, count)


def _rows(tensor: Tensor) -> Tensor:
    """View each element as a row of its bytes."""
    dense = tensor.detach().cpu().contiguous().reshape(-1)
    return dense.view(torch.uint8).reshape(dense.numel(), -1)


def _gap(a: Tensor, b: Tensor) -> Tensor:
    if a.is_complex() or a.is_floating_point():
        wide = torch.complex128 if a.is_complex() else torch.float64
        return (a.to(wide) - b.to(wide)).abs().nan_to_num(nan=0.0, posinf=float("inf"))
    return (a.long() - b.long()).abs()
