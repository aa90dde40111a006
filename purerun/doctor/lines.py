"""Lines of code: whose they are, where they stand and what they say."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
import site
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeAlias

import attrs
import numpy as np
import torch

import purerun

Scope: TypeAlias = Callable[[str], bool]
"""Says of a file whether its lines are of interest."""


def _folder(file: str | None) -> str:
    return str(Path(file or ".").resolve().parent)


_NOBODYS = (_folder(purerun.__file__), _folder(torch.__file__), _folder(np.__file__), _folder(os.__file__))
_INSTALLED = tuple(
    str(Path(folder).resolve())
    for folder in {
        *site.getsitepackages(),
        site.getusersitepackages(),
        *map(sysconfig.get_path, ("purelib", "platlib")),
    }
)


_HEADERS = ("class ", "def ", "async def ")


@functools.cache
def is_own(file: str) -> bool:
    """Say whether a file is the user's own: neither purerun's, nor Python's, nor an installed package's."""
    return is_theirs(file) and not _below(file, _INSTALLED)


@functools.cache
def is_theirs(file: str) -> bool:
    """Say whether a file is the user's own or an installed package's: neither purerun, torch, numpy nor Python."""
    if file.startswith("<"):
        return False  # made by exec: there is nothing to point at
    # The standard library holds the installed packages in a folder of its own.
    return not _below(file, _NOBODYS) or (_below(file, _INSTALLED) and not _below(file, _NOBODYS[:3]))


def _below(file: str, folders: tuple[str, ...]) -> bool:
    path = os.path.realpath(file)
    return any(path.startswith(folder + os.sep) for folder in folders)


@attrs.frozen
class Line:
    """One line of code.

    Attributes:
        file: where it stands.
        number: counted from 1.
        exact: False if what is meant lies somewhere in what begins here.
    """

    file: str
    number: int
    exact: bool = True

    @property
    def source(self) -> str:
        """What it says; "" if the file cannot be read."""
        linecache.checkcache(self.file)
        return linecache.getline(self.file, self.number).strip()

    def __str__(self) -> str:
        path = os.path.relpath(self.file)
        shown = self.file if path.startswith("..") else path
        return f"{'' if self.exact else 'in '}{shown}:{self.number}"


def beginning(thing: Any) -> Line | None:
    """Find the line at which a function, a class or the class of an object begins; None where nobody can tell.

    >>> beginning(beginning).source
    'def beginning(thing: Any) -> Line | None:'
    """
    if isinstance(thing, functools.partial):
        return beginning(thing.func)
    if isinstance(thing, MethodType):
        return beginning(thing.__func__)
    named = thing if isinstance(thing, type | FunctionType) else type(thing)
    try:
        file, (lines, start) = inspect.getsourcefile(named), inspect.getsourcelines(named)
    except (OSError, TypeError):
        return None
    # Its decorators come first; a lambda has no header of its own.
    header = next((place for place, text in enumerate(lines) if text.lstrip().startswith(_HEADERS)), 0)
    return None if file is None else Line(file, start + header, exact=False)


def own_beginning(*things: Any) -> Line | None:
    """Find the first of some things that begins in the user's own code."""
    lines = [line for line in map(beginning, things) if line is not None and is_own(line.file)]
    return lines[0] if lines else None


def is_inside(line: Line, code: CodeType) -> bool:
    """Say whether a line belongs to a function, or to one that is written inside of it."""
    if line.file != code.co_filename:
        return False
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return line.number in {number for _, _, number in code.co_lines()} or any(is_inside(line, each) for each in inner)
