"""What a step is, as a text: the program that a state was made by, and its fingerprint.

A state is tensors only, so it carries the hash of this text.  Configuration values,
qualified names, parameter names, shapes and dtypes enter it; the number of processes,
devices and source texts do not.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import attrs
import torch
from torch import Tensor, nn

# Content-addressed: a text is found by its own hash, so what else is in here can
# change no result, only how well a difference can be explained.
_TEXTS: dict[str, str] = {}


def describe(value: Any) -> str:
    """Say a configuration value in one line that is the same in every process.

    >>> describe(describe), describe(0.5), describe(("a", 1))
    ('describe', '0.5', "('a', 1)")
    """
    if isinstance(value, nn.Module):
        return architecture(value)
    if attrs.has(type(value)):
        fields = [field for field in attrs.fields(type(value)) if field.init and field.repr]
        inner = ", ".join(f"{field.name}={describe(getattr(value, field.name))}" for field in fields)
        return f"{type(value).__qualname__}({inner})"
    if isinstance(value, functools.partial):
        arguments = [*map(describe, value.args), *(f"{k}={describe(v)}" for k, v in value.keywords.items())]
        return f"partial({describe(value.func)}, {', '.join(arguments)})"
    if isinstance(value, torch.dtype | torch.device | PurePath | Enum):
        return str(value)
    if isinstance(value, type | FunctionType | MethodType | BuiltinFunctionType):
        return value.__qualname__
    if callable(value):
        inner = ", ".join(f"{name}={describe(held)}" for name, held in sorted(getattr(value, "__dict__", {}).items()))
        return f"{type(value).__qualname__}({inner})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(describe, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, bool | int | float | str | type(None)):
        return repr(value)
    return type(value).__qualname__


def architecture(model: nn.Module) -> str:
    """Say a module with all its layers and their options, as it prints itself.

    >>> print(architecture(nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))))
    Sequential(
      (0): Linear(in_features=2, out_features=1, bias=True)
      (1): Dropout(p=0.5, inplace=False)
    )
    """
    # Addresses differ from process to process.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model))


def shapes(tensors: Mapping[str, Tensor]) -> list[str]:
    """List tensors as lines: name, dtype and shape."""
    return [f"  {name}: {str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in tensors.items()]


def fingerprint(text: str) -> Tensor:
    """Hash a program's text into the leaf that a state carries: uint8, shape [32].

    >>> fingerprint("a").shape, torch.equal(fingerprint("a"), fingerprint("b"))
    (torch.Size([32]), False)
    """
    raw = hashlib.sha256(text.encode()).digest()
    _TEXTS[raw.hex()] = text
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).clone()


def recall(mark: str) -> str | None:
    """Find the text with a fingerprint (64 hex digits), if this process has seen it.

    >>> recall(bytes(fingerprint("lr=1").tolist()).hex())
    'lr=1'
    """
    return _TEXTS.get(mark)


def difference(old: Tensor, text: str) -> str:
    r"""Say in which lines the program with fingerprint `old` differs from a text.

    >>> print(difference(fingerprint("lr=1\nmomentum=0"), "lr=2\nmomentum=0"))
    - lr=1
    + lr=2
    """
    known = recall(bytes(old.tolist()).hex())
    if known is None:
        return f"its text is not known here; this step is\n{text}"
    lines = difflib.unified_diff(known.splitlines(), text.splitlines(), lineterm="", n=0)
    marked = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in marked)
