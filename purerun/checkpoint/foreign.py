"""Weights that others wrote with `torch.save`: the tensors of such a file, and nothing else of it.

A `.pth` is a pickle, and a pickle is a program.  It is read by torch's restricted unpickler
alone, which calls torch's own functions that rebuild tensors and makes plain containers.
What else a training framework has put beside its weights (a history of scalars, numpy
numbers, hyper-parameters in a class of its own) the unpickler refuses by name, and with it
the whole file.  So each such name is given an inert stand-in of ours for the time of the
reading: it takes any arguments, does nothing with them and remembers nothing.  This is safe
because the unpickler never looks a name up by importing it: it takes what its table has under
that name, and in the table there is torch's own list and our stand-ins.
"""

from __future__ import annotations

import re
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn

from purerun.checkpoint.error import CheckpointError, brief

ENDINGS = (".pth", ".pt", ".ckpt", ".bin")

# What files call their weights, the first that is there.
_WEIGHTS = ("state_dict", "model")
_AVERAGES = ("state_dict_ema", "model_ema")
# MMEngine's hook swaps the two when it saves: the average is what it calls `state_dict`.
_SWAPPED = "ema_state_dict"
_COUNTERS = {"steps", "n_averaged"}

# Of the standard library these are written where data is meant; HistoryBuffer holds methods, which
# pickle spells with getattr.  A file that names anything else of it was made to do harm.
_DATA = re.compile(
    r"builtins\.(getattr|object|list|dict|tuple|frozenset|int|float|bool|str|bytes|slice|range)"
    r"|(collections|datetime|pathlib|enum|types\.SimpleNamespace|argparse\.Namespace|functools\.partial"
    r"|copyreg\._reconstructor|uuid\.UUID|decimal\.Decimal|fractions\.Fraction|typing|abc)(\..*)?"
)


def read_foreign(file: Path, weights: str = "") -> dict[str, Tensor]:
    """Read weights from a file of `torch.save`, each tensor in memory of its own, on the CPU.

    Two names of one tensor are two names of one tensor here, too.

    Args:
        file: a `state_dict`, or a checkpoint that has one: of MMEngine and MMCV, Lightning, timm, torchvision.
        weights: which of them: "" for those that the file itself calls its weights, "ema" for
            an average, or the name of an entry.

    Raises:
        CheckpointError: it cannot be read, is damaged or malicious, or has no such weights.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "a.pth"
    ...     torch.save({"state_dict": {"module.w": torch.ones(2)}, "meta": {"epoch": 3}}, file)
    ...     read_foreign(file)
    {'w': tensor([1., 1.])}
    """
    return _own(file, _chosen(file, _unpickled(file), weights))


class _Inert:
    """Stands for what is filled from a tuple, as all of numpy: whatever it is given, it is nothing."""

    def __new__(cls, *_: Any) -> Self:
        return object.__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


class _Bag:
    """Stands for any other class: a mapping, since the unpickler fills mappings only if they are one of three."""

    def __new__(cls, *_: Any) -> Counter[Any]:  # type: ignore[misc]
        return Counter()


class _Row:
    """Stands for a sequence that is filled item by item."""

    def __new__(cls, *_: Any) -> list[Any]:  # type: ignore[misc]
        return []


def _unpickled(file: Path) -> Any:
    zipped = zipfile.is_zipfile(file)
    try:
        with _stood_in(file) if zipped else nullcontext():
            # Mapped, so that only what is taken is copied; the format before torch 1.6 cannot be.
            # Foreign weights are pickles, and this is the one way to read them: torch's restricted unpickler
            # (sound since torch 2.10), and of what it gives nothing but tensors is taken.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)  # noqa: TID251
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{file}: expected weights that can be read without running anything ({_reason(error)}); it is damaged, "
            "or no such file: write them alone, with torch.save(model.state_dict(), ...) or as safetensors"
        ) from error


def _stood_in(file: Path) -> AbstractContextManager[Any]:
    """Give each name that torch does not know a stand-in.

    Raises:
        CheckpointError: one of them is no data.
    """
    with zipfile.ZipFile(file) as archive:
        # torch.save never compresses; mapped memory would be wrong, and a few bytes could become gigabytes.
        if packed := [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]:
            raise CheckpointError(f"{file}: expected what torch.save writes, got a compressed {packed[0]}")
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    for name in names:
        if _is_harmful(name):
            raise CheckpointError(
                f"{file}: asks for {name}, which is no data; it is refused, and nothing in it was run"
            )
    return torch.serialization.safe_globals([(_stand_in(name), name) for name in names])


def _is_harmful(name: str) -> bool:
    module, _, member = name.rpartition(".")
    module = IMPORT_MAPPING.get(module, module)  # pickles call modules of the standard library as Python 2 did
    return module.partition(".")[0] in sys.stdlib_module_names and not _DATA.fullmatch(f"{module}.{member}")


def _stand_in(name: str) -> type:
    if name == "collections.deque":
        return _Row
    return _Inert if name.startswith("numpy.") or name == "functools.partial" else _Bag


def _chosen(file: Path, content: Any, weights: str) -> dict[str, Any]:
    """Find the weights that are meant in what a file holds."""
    for name in _entries(content, weights):
        found: Any = content if not name else dict.get(content, name)
        if _is_plain(found) and any(isinstance(value, Tensor) for value in dict.values(found)):
            return found
    entries = ", ".join(map(str, list(dict.keys(content))[:8])) if _is_plain(content) else type(content).__name__
    wanted = f"weights {weights!r}" if weights else "weights by their names"
    raise CheckpointError(
        f"{file}: expected {wanted}, found {entries or 'nothing'}; "
        + ("choose an entry that holds tensors" if weights else "save model.state_dict(), not the model itself")
    )


def _entries(content: Any, weights: str) -> tuple[str, ...]:
    if not _is_plain(content):
        return ()
    if not weights:
        return (*_WEIGHTS, "")
    if weights == "ema" and _SWAPPED in content:
        return _WEIGHTS[:1]
    return _AVERAGES if weights == "ema" and "ema" not in content else (weights,)


def _is_plain(value: Any) -> TypeGuard[dict[str, Any]]:
    # By exact type, and read with dict's own methods: what the file wrote into an OrderedDict's
    # attributes is never called.
    return type(value) in (dict, OrderedDict)


def _own(file: Path, found: dict[str, Any]) -> dict[str, Tensor]:
    """Copy the tensors, each once, whatever they were wrapped in."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, value in _unwrapped({name: value for name, value in dict.items(found) if type(name) is str}):
        if type(value) not in (Tensor, nn.Parameter):
            continue
        plain = Tensor.detach(value)
        if not _is_held(plain):
            raise CheckpointError(
                f"{file}: expected a dense tensor that the file holds at {name}, got {brief(plain.dtype)} of "
                f"{list(plain.shape)}; write it as `tensor.contiguous()`, dense and not quantized"
            )
        place = (plain.data_ptr(), plain.dtype, plain.shape, plain.stride())
        if place not in copies:
            copies[place] = plain.clone()
        own[name] = copies[place]
    return own


def _is_held(tensor: Tensor) -> bool:
    """Say whether each element is in the file: an expanded tensor would take memory without end."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _unwrapped(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Take away what DataParallel, an averaged model or torch.compile have put before the names."""
    inside = all(name.startswith("module.") or name in _COUNTERS for name in found)
    for name, value in found.items():
        if not inside or name not in _COUNTERS:
            yield (name.removeprefix("module.") if inside else name).replace("_orig_mod.", ""), value


def _reason(error: Exception) -> str:
    # torch's text is a page, most of which is about trusting the file after all.
    lines = [line for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "WeightsUnpickler error" in line] or lines[1:2] or lines[:1]
    return brief(f"{type(error).__name__} {' '.join(told).rpartition('WeightsUnpickler error:')[2]}")
