"""Checkpoints elsewhere: sent to and fetched from whatever fsspec has a file system for, by URL.

A checkpoint is made on the local disk and then sent; it is fetched to the local disk and then
loaded, verified and refused as one that was always here.  Its objects have the names that
the files have, so that a folder can be copied there and back by any tool.

Object stores have no rename, and some file systems tear a file that is being written.  So the
manifest is the record that a checkpoint is complete: the tensors are sent first, the manifest
last, and what has no manifest is not there.  A checkpoint is replaced by way of `.NAME.new` beside it:

1. the new one is sent there, its manifest last;
2. the manifest in the place is removed, so that no reader sees old and new mixed;
3. the tensors are copied to the place, then the manifest; `.NAME.new` is removed, its manifest first.

Whoever finds no good manifest in the place looks beside it.  After a crash before 2 the old one is found, after
it the new one, and both are whole.  What no order of writes can promise, the digests do: a
manifest that was torn does not fit its own checksum, and tensors of another state do not fit the
manifest, so nothing mixed is ever loaded as if it were sound.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from purerun.checkpoint import locate, manifest
from purerun.checkpoint.error import CheckpointError
from purerun.checkpoint.manifest import MANIFEST, TENSORS, Manifest
from purerun.checkpoint.store import Store

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^/]+)?://.+")
_HERE = re.compile(r"(file|local)://")
_NAME = re.compile(r"iter_\d{8,18}")
_POINTER_SIZE = 64


def is_url(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is a URL of another place than this machine.

    >>> is_url("s3://bucket/run"), is_url("file:///runs/a"), is_url("runs/a")
    (True, False, False)
    """
    return isinstance(path, str) and bool(_URL.fullmatch(path)) and not _HERE.match(path)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a checkpoint, here or at a URL, and check that its files are there and of the right size.

    Raises:
        CheckpointError: there is none, or it cannot be believed.

    >>> state = pr.testing.counted(iter=3)
    >>> _ = pr.save(state, "memory://read_manifest/a")
    >>> read_manifest("memory://read_manifest/a").counters["iter"]
    3
    """
    if not is_url(path):
        return manifest.read_manifest(_local(path))
    with _folder(str(path)) as folder:
        return _fetch_manifest(_whole(Store.at(str(path)), folder), folder)


@contextmanager
def fetched(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Have a checkpoint, a run's last checkpoint or a file of weights on this machine, for as long as the block lasts.

    A path of this machine is itself.

    Raises:
        CheckpointError: it cannot be fetched.
    """
    if not is_url(path):
        yield _local(path)
        return
    with _folder(str(path)) as folder:
        store = Store.at(str(path))
        name = str(path).rstrip("/").rpartition("/")[2]
        if "." in name and store.size() is not None:
            with _said(f"{folder / name}", str(path)):
                yield store.get("", folder / name)
            return
        _fetch(store, folder)
        yield folder


@contextmanager
def sent(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Have a place on this machine for a checkpoint that is made in the block, and sent at its end.

    A path of this machine is that place itself.

    Raises:
        SaveError: it cannot be sent.
    """
    if not is_url(path):
        yield _local(path)
        return
    store = Store.at(str(path))
    _refuse_other(store)
    with _folder(str(path)) as folder:
        yield folder / "checkpoint"
        _send(store, folder / "checkpoint")


def _fetch(store: Store, folder: Path) -> None:
    """Fetch a checkpoint, or of a run what `find` looks at: the pointer and the checkpoint that it names."""
    whole = _whole(store, folder)
    if whole.size(MANIFEST) is not None:
        _fetch_checkpoint(whole, folder)
        return
    run, inside = store.inside(locate.FOLDER), folder / locate.FOLDER
    name = _pointed(run, inside) or _highest(run, inside)
    if name is not None:  # otherwise `find` says what was expected
        (inside / name).mkdir()
        _fetch_checkpoint(_whole(run.inside(name), inside / name), inside / name)


def _pointed(run: Store, inside: Path) -> str | None:
    """Read which checkpoint is the last one of a run, as it is read here."""
    size = run.size(locate.LAST)
    if size is None:
        return None
    if size > _POINTER_SIZE:
        raise CheckpointError(f"{run.url}/{locate.LAST}: expected the name of a checkpoint, found {size} bytes")
    inside.mkdir()
    run.get(locate.LAST, inside / locate.LAST)
    return locate.last(inside.parent)


def _highest(run: Store, inside: Path) -> str | None:
    """Find the last checkpoint of a run that has no pointer; what has no manifest is not there."""
    inside.mkdir(exist_ok=True)
    names = sorted((name for name in run.names() if _NAME.fullmatch(name)), key=lambda name: int(name[5:]))
    there = (name for name in reversed(names) if _whole(run.inside(name), inside).size(MANIFEST) is not None)
    return next(there, None)


def _fetch_checkpoint(store: Store, folder: Path) -> None:
    _fetch_manifest(store, folder)
    store.get(TENSORS, folder / TENSORS)


def _fetch_manifest(store: Store, folder: Path) -> Manifest:
    """Fetch a manifest, believe it, and look whether the tensors are as large as it says: before they are fetched."""
    size = store.size(MANIFEST)
    if size is None:
        raise CheckpointError(f"{store.url}/{MANIFEST}: expected a file, found none; is {store.url} a checkpoint?")
    if size > manifest.LARGEST:
        raise CheckpointError(
            f"{store.url}/{MANIFEST}: expected at most {manifest.LARGEST} bytes, found {size}; it is no manifest"
        )
    content = manifest.parsed(store.get(MANIFEST, folder / MANIFEST))
    for name, entry in content.files.items():
        found = store.size(name)
        if found != entry.bytes:
            raise CheckpointError(
                f"{store.url}/{name}: expected {entry.bytes} bytes, found {found}; "
                "it is damaged, use an older checkpoint"
            )
    return content


def _whole(store: Store, folder: Path) -> Store:
    """Find where a checkpoint is: in its place, or beside it after a crash while it was replaced."""
    beside = store.beside()
    good = (each for each in (store, beside) if each.size(MANIFEST) is not None and _is_good(each, folder))
    return store if beside.size(MANIFEST) is None else next(good, store)


def _is_good(store: Store, folder: Path) -> bool:
    try:
        _fetch_manifest(store, folder)
    except CheckpointError:
        return False
    return True


def _send(store: Store, folder: Path) -> None:
    beside = store.beside()
    _settle(store, beside, folder.parent)
    if store.size(MANIFEST) is None:
        store.put(folder / TENSORS, TENSORS)
        store.put(folder / MANIFEST, MANIFEST)
        return
    beside.put(folder / TENSORS, TENSORS)
    beside.put(folder / MANIFEST, MANIFEST)
    _move(beside, store)


def _settle(store: Store, beside: Store, folder: Path) -> None:
    """Finish what a crash left half done, so that nothing good is beside the place."""
    if _whole(store, folder) == beside:
        _move(beside, store)
    for name in (MANIFEST, TENSORS):
        beside.remove(name)


def _move(beside: Store, store: Store) -> None:
    store.remove(MANIFEST)
    for name in (TENSORS, MANIFEST):
        beside.copy(name, store)
    for name in (MANIFEST, TENSORS):
        beside.remove(name)


def _refuse_other(store: Store) -> None:
    is_file = store.size() is not None
    others = [] if is_file else sorted(set(store.names()) - {MANIFEST, TENSORS})
    if is_file or others:
        what = "a file" if is_file else f"a folder that holds {', '.join(others[:3])}"
        raise CheckpointError(
            f"{store.url}: expected a checkpoint to replace, or nothing, found {what}; choose another name"
        )


@contextmanager
def _folder(url: str) -> Iterator[Path]:
    """Have a folder on this machine that errors call by its URL."""
    with TemporaryDirectory(prefix="purerun-") as name, _said(name, url.rstrip("/")):
        yield Path(name)


@contextmanager
def _said(here: str, url: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise type(error)(str(error).replace(here, url)) from error


def _local(path: str | os.PathLike[str]) -> Path:
    return Path(_HERE.sub("", path, count=1) if isinstance(path, str) else path)
