"""The manifest: what a checkpoint says about itself, and how that is written down and believed.

The text is JSON.  Its last field is the sha256 of the text before that field, so that
any change of any byte is noticed, before anything in it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import attrs

from purerun.checkpoint import formats
from purerun.checkpoint.error import CheckpointError

JSON: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None
"""What the manifest's free fields may hold; floats must be finite."""


def encoded(value: float) -> float | str:
    """Write a number so that every JSON reader takes it, and `float(...)` reads it back.

    JSON has no NaN and no infinities: they become the strings "nan", "inf" and "-inf".

    >>> encoded(0.1), encoded(float("nan")), float(encoded(float("-inf")))
    (0.1, 'nan', -inf)
    """
    return value if math.isfinite(value) else str(value)


MANIFEST = "manifest.json"
TENSORS = "state.safetensors"

# A leaf takes about 120 bytes: room for 500 000 of them, and no more memory than that for a hostile file.
LARGEST = 64 * 2**20
_END = re.compile(r' "checksum": "([0-9a-f]{64})"\n}\n\Z')

_Validator: TypeAlias = Callable[[Any, Any, Any], Any]
_count = attrs.validators.and_(
    attrs.validators.instance_of(int), attrs.validators.not_(attrs.validators.instance_of(bool)), attrs.validators.ge(0)
)
_text = attrs.validators.instance_of(str)
_hash = attrs.validators.and_(_text, attrs.validators.matches_re(r"[0-9a-f]{64}"))
# Bounded: no number that Python would refuse to read, and no more dimensions than torch has.
_leaf = attrs.validators.and_(
    _text, attrs.validators.matches_re(r"[a-z0-9_]{1,40} (-|[0-9]{1,19}(x[0-9]{1,19}){0,63}) [0-9a-f]{64}")
)


def _mapping(value: _Validator) -> _Validator:
    return attrs.validators.deep_mapping(_text, value, attrs.validators.instance_of(dict))


def _list(member: _Validator) -> _Validator:
    return attrs.validators.deep_iterable(member, attrs.validators.instance_of(list))


def _change(_: Any, field: Any, change: Any) -> None:
    known = isinstance(change, dict) and set(change) == {"iter", "changes"} and isinstance(change["changes"], dict)
    if not known or type(change["iter"]) is not int or change["iter"] < 0:
        raise ValueError(f"expected {field.name} of {{iter, changes}}, got {str(change)[:80]}")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in change["changes"].values()):
        raise ValueError(f"expected {field.name} with pairs of an old and a new value, got {str(change)[:80]}")


@attrs.frozen
class File:
    """One file of a checkpoint.

    Attributes:
        bytes: its size.
        header: sha256 of the header, that is, of all bytes that belong to no leaf.
    """

    bytes: int = attrs.field(validator=_count)
    header: str = attrs.field(validator=_hash)


@attrs.frozen
class Kind:
    """What a leaf is, without its values.

    Attributes:
        dtype: the name of its dtype.
        shape: its shape.
        strides: how it lies in memory, in elements; None for row-major.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None


@attrs.frozen
class Manifest:
    """What a checkpoint says about itself.

    Attributes:
        counters: `epoch`, `iter`, `cursor` and `seed`, as far as the state has them.
        digest: of the state.
        scores: name -> value, of the validations that judged this very state; "nan", "inf" and "-inf" are texts.
        created: when it was made, UTC, as ISO 8601 writes it; "" where that is not known.
        parent: the digest of the checkpoint before it in its run.
        fingerprint: of the step that made the state.
        program: the text with that fingerprint, when it was known.
        recipe: the whole run as data, for comparison.
        changes: what was changed in the recipe when the run went on, the oldest first: the iteration, and
            path -> [old, new].
        memory: what the sinks of the run remember, by the label of the sink.
        versions: of the libraries that wrote it.
        files: by name.
        leaves: path -> `dtype shape sha256` of each leaf, the fingerprint included.
        strides: path -> strides (in elements) of each leaf that is dense, but not row-major in memory.
            No value depends on them, but which kernel torch takes may.
        empty: paths of the sub-trees without leaves.
    """

    counters: dict[str, int] = attrs.field(validator=_mapping(attrs.validators.instance_of(int)))
    digest: str = attrs.field(validator=_hash)
    scores: dict[str, float | str] = attrs.field(validator=_mapping(attrs.validators.instance_of((float, str))))
    created: str = attrs.field(validator=_text)
    parent: str | None = attrs.field(validator=attrs.validators.optional(_hash))
    fingerprint: str | None = attrs.field(validator=attrs.validators.optional(_text))
    program: str | None = attrs.field(validator=attrs.validators.optional(_text))
    recipe: JSON = attrs.field()
    changes: list[dict[str, Any]] = attrs.field(validator=_list(_change))
    memory: dict[str, JSON] = attrs.field(validator=_mapping(attrs.validators.instance_of(object)))
    versions: dict[str, str] = attrs.field(validator=_mapping(_text))
    files: dict[str, File] = attrs.field(validator=_mapping(attrs.validators.instance_of(File)))
    leaves: dict[str, str] = attrs.field(validator=_mapping(_leaf))
    strides: dict[str, list[int]] = attrs.field(validator=_mapping(_list(_count)))
    empty: list[str] = attrs.field(validator=_list(_text))

    @files.validator
    def _known_files(self, _: Any, files: Mapping[str, File]) -> None:
        # A fixed name: no path of any kind comes out of a manifest.
        if set(files) != {TENSORS}:
            raise ValueError(f"expected the one file {TENSORS!r}, got {sorted(files)}")

    def kinds(self) -> dict[str, Kind]:
        """Say dtype, shape and strides of each leaf."""
        return {name: _kind(line, self.strides.get(name)) for name, line in self.leaves.items()}

    def text(self) -> str:
        """Write it down, checksum included.

        Raises:
            CheckpointError: the recipe or a sink's memory is not plain JSON.
        """
        content = {"format": formats.NEWEST, **attrs.asdict(self), "checksum": ""}  # last: see _END
        try:
            text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=True) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"expected recipe and memory to be plain JSON with finite numbers: {error}"
            ) from error
        end = len(text) - len('"\n}\n')
        return text[:end] + _sha(text) + text[end:]

    @classmethod
    def parse(cls, text: str, where: str) -> Manifest:
        """Read what `text` wrote.

        Args:
            text: the manifest.
            where: what to call it in an error.

        Raises:
            CheckpointError: it was changed, is of another format, or holds what a manifest does not.
        """
        content = _content(text, where)
        try:
            content = formats.brought_forward(content)
            files = {name: File(**entry) for name, entry in content.pop("files").items()}
            return cls(**content, files=files)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{where}: not a manifest: {_first_line(error)}") from error


def read_manifest(path: str | Path) -> Manifest:
    """Read the manifest of a checkpoint directory, and check that its files are there and of the right size.

    Raises:
        CheckpointError: there is none, or it cannot be believed.

    >>> import tempfile, purerun as pr
    >>> state = pr.testing.counted(iter=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.save(state, folder + "/a")
    ...     read_manifest(folder + "/a").counters["iter"]
    3
    """
    file = Path(path) / MANIFEST
    manifest = parsed(file)
    for name, entry in manifest.files.items():
        size = _plain_size(file.with_name(name))
        if size != entry.bytes:
            raise CheckpointError(
                f"{file.with_name(name)}: expected {entry.bytes} bytes, found {size}; "
                "it is damaged, use an older checkpoint"
            )
    return manifest


def parsed(file: Path) -> Manifest:
    """Read a manifest by itself, without a look at what it is about.

    Raises:
        CheckpointError: it cannot be believed.
    """
    return Manifest.parse(_read_text(file), str(file))


def _kind(line: str, strides: list[int] | None) -> Kind:
    dtype, shape, _ = line.split()
    return Kind(dtype, () if shape == "-" else tuple(map(int, shape.split("x"))), tuple(strides) if strides else None)


def _content(text: str, where: str) -> dict[str, Any]:
    end = _END.search(text)
    if end is None or _sha(text[: end.start(1)] + text[end.end(1) :]) != end[1]:
        raise CheckpointError(f"{where}: the checksum does not fit the text; it is damaged, use an older checkpoint")
    try:
        content = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not JSON: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(content).__name__}")
    del content["checksum"]
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")  # and which of the two is meant, each reader would say differently
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _read_text(file: Path) -> str:
    size = _plain_size(file)
    if size > LARGEST:
        raise CheckpointError(f"{file}: expected at most {LARGEST} bytes, found {size}; it is no manifest")
    try:
        return file.read_bytes().decode("ascii")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: expected ASCII text; it is damaged, use an older checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _plain_size(file: Path) -> int:
    try:
        about = file.lstat()
    except OSError as error:
        raise CheckpointError(
            f"{file}: expected a file, got {error.strerror}; is {file.parent} a checkpoint?"
        ) from error
    if not stat.S_ISREG(about.st_mode):
        raise CheckpointError(f"{file}: expected a plain file, found a link or a folder; copy the file itself there")
    return about.st_size


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    # A validator's message goes on with the whole field.
    return str(error).partition("\n")[0][:200]
