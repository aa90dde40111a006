"""How the weights of a file fit a model: which tensor goes where."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

from purerun.checkpoint.error import CheckpointError
from purerun.identity import read_bytes
from purerun.naming import Naming
from purerun.state import StateError

_SHOWN = 40  # rows; more say that it is another model, and that is said by the first line


@attrs.frozen
class Row:
    """One name under which a model and a file do not agree.

    Attributes:
        what: the kind of disagreement.
        name: of the tensor, as the model calls it; of an unexpected one, as the file does.
        expected: what the model has there.
        found: what the file has there.
    """

    what: Literal["missing", "unexpected", "mismatched"]
    name: str
    expected: str = "-"
    found: str = "-"


@attrs.frozen
class Match:
    """How the weights of a file fit a model; `str()` of it is a table.

    Attributes:
        where: the file.
        taken: the names of the tensors that the model takes from it.
        rows: what does not fit: the missing, then the unexpected, then the mismatched.
        hint: how renaming might help; "" where it would not.
    """

    where: str
    taken: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    hint: str = ""

    @property
    def summary(self) -> str:
        """How many fit, and how many do not, in one line."""
        counts = Counter(row.what for row in self.rows)
        odd = "".join(f", {count} {what}" for what, count in counts.items())
        return f"{self.where}: {len(self.taken)} tensors taken{odd}"

    def __str__(self) -> str:
        lines = [self.summary, *self.table()]
        return "\n".join((*lines, self.hint) if self.hint else lines)

    def table(self) -> list[str]:
        """Lay out the rows: kind, name, what was expected, what was found."""
        if not self.rows:
            return []
        shown = [("", "name", "expected", "found"), *(attrs.astuple(row) for row in self.rows[:_SHOWN])]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
        ]
        more = len(self.rows) - _SHOWN
        return [*lines, f"... and {more} more"] if more > 0 else lines


class WeightsDiffer(StateError):
    """The weights of a file are not those of the model; `match` says in which names."""

    def __init__(self, match: Match) -> None:
        self.match = match
        hint = f" ({match.hint})" if match.hint else ""
        first = match.rows[0]
        super().__init__(
            f"{match.summary}; the first is `{first.name}`: expected {first.expected}, found {first.found}; "
            f"rename what has other names{hint}, or take what fits with strict=False (--no-strict)"
        )


def match(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    where: str,
    *,
    rename: Mapping[str, str] | None = None,
    naming: Naming | None = None,
) -> tuple[dict[str, Tensor], Match]:
    """Find the tensors of a file that a model can take: as those of the model in dtype, device and strides.

    A number format that loses nothing but precision is converted, as `load_state_dict` does.
    `num_batches_tracked`, which old files lack, stays as it is where the rest of its norm is there.

    Args:
        wanted: the tensors of the model by their names.
        found: those of the file.
        where: what to call the file.
        rename: regular expression -> replacement, applied to each name of the file in this order and
            wherever it matches, as MMEngine's `revise_keys` (`^` ties it to the beginning).
        naming: what the model's `state_dict` calls them.

    Raises:
        CheckpointError: a pattern is none, or makes one name of two.

    >>> wanted = {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)}
    >>> found = {"head.weight": torch.ones(2, 3), "head.bias": torch.ones(4)}
    >>> taken, fit = match(wanted, found, "a.pth", rename={"^head": "fc"})
    >>> print(fit)
    a.pth: 1 tensors taken, 1 mismatched
                name     expected     found
    mismatched  fc.bias  float32 [2]  float32 [4]
    """
    naming = naming or Naming()
    renamed = _renamed(found, rename or {})
    sources = _sources(wanted, renamed, naming)
    pairs = {name: (wanted[name], renamed[source]) for name, source in sources.items()}
    taken = {name: _like(*pair) for name, pair in pairs.items() if _fits(*pair)}
    rows = (
        *(Row("missing", name, expected=_say(wanted[name])) for name in _missing(wanted, sources, naming)),
        *(Row("unexpected", name, found=_say(renamed[name])) for name in _unexpected(renamed, sources, naming)),
        *(Row("mismatched", name, *map(_say, pair)) for name, pair in pairs.items() if name not in taken),
        *(Row("mismatched", name, f"that of {first}", "another") for name, first in _untied(renamed, sources, naming)),
    )
    return taken, Match(where, tuple(taken), rows, _hint(rows))


def _renamed(found: Mapping[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for old, tensor in found.items():
        name = old
        for pattern, replacement in rename.items():
            try:
                name = re.sub(pattern, replacement, name)
            except (re.error, IndexError) as error:
                raise CheckpointError(
                    f"expected a regular expression to rename by, got {pattern!r}: {error}"
                ) from error
        if name in renamed:
            raise CheckpointError(f"expected names that stay different, but {old} is renamed to {name}, which is there")
        renamed[name] = tensor
    return renamed


def _sources(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], naming: Naming) -> dict[str, str]:
    """Say under which name of the file each tensor of the model is, as far as it is there."""
    known = {name: [name] for name in wanted}
    for second, first in naming.first.items():
        known.get(first, []).append(second)
    # A part of the model that is really called `module` was taken for a wrapper by the reading.
    named = {name: (*names, name.removeprefix("module.")) for name, names in known.items()}
    return {
        name: next(each for each in names if each in found) for name, names in named.items() if set(names) & set(found)
    }


def _fits(want: Tensor, have: Tensor) -> bool:
    return want.shape == have.shape and torch.can_cast(have.dtype, want.dtype)


def _like(want: Tensor, have: Tensor) -> Tensor:
    return torch.empty_like(want).copy_(have)


def _missing(wanted: Mapping[str, Tensor], sources: Mapping[str, str], naming: Naming) -> Iterator[str]:
    for name in wanted:
        norm, _, last = name.rpartition(".")
        counter = last == "num_batches_tracked" and f"{norm}.running_mean" in sources
        if name not in sources and name not in naming.unsaved and not counter:
            yield name


def _unexpected(found: Mapping[str, Tensor], sources: Mapping[str, str], naming: Naming) -> Iterator[str]:
    used = set(sources.values())
    tensors = {id(found[source]) for source in used}  # a tied tensor is one object under several names
    return (name for name in found if name not in used | set(naming.first) and id(found[name]) not in tensors)


def _untied(found: Mapping[str, Tensor], sources: Mapping[str, str], naming: Naming) -> Iterator[tuple[str, str]]:
    """List names of tied tensors under which the file has other values than under the first one."""
    for name, first in naming.first.items():
        if name in found and first in sources and read_bytes(found[name]) != read_bytes(found[sources[first]]):
            yield name, first


def _hint(rows: tuple[Row, ...]) -> str:
    """Find out whether all that is missing is there, only with a prefix more or less."""
    missing = {row.name for row in rows if row.what == "missing"}
    unexpected = {row.name for row in rows if row.what == "unexpected"}
    more = Counter(_prefixes(unexpected, missing)).most_common(1)
    less = Counter(_prefixes(missing, unexpected)).most_common(1)
    if more and 2 * more[0][1] >= len(missing):
        return f"as by --rename '^{re.escape(more[0][0])}='"
    if less and 2 * less[0][1] >= len(missing):
        return f"as by --rename '^={less[0][0]}'"
    return ""


def _prefixes(longer: set[str], shorter: set[str]) -> Iterator[str]:
    for name in longer:
        for at in (found.end() for found in re.finditer(r"\.", name)):
            if name[at:] in shorter:
                yield name[:at]


def _say(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
