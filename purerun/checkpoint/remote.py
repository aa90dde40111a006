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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from purerun.checkpoint import manifest
from purerun.checkpoint.error import CheckpointError, SaveError, cause, reading
from purerun.checkpoint.layout import FOLDER, number
from purerun.checkpoint.manifest import MANIFEST, TENSORS, Manifest
from purerun.checkpoint.place import is_url, local
from purerun.checkpoint.pointer import LAST, LONGEST, forgiving, named
from purerun.checkpoint.store import Store

_NAME = re.compile(r"iter_\d{8,18}")


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
        return manifest.read_manifest(local(path))
    with _folder(str(path), CheckpointError) as folder:
        return _fetch_manifest(_whole(Store.at(str(path)), folder), folder)


@contextmanager
def fetched(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Have a checkpoint, a run's last checkpoint or a file of weights on this machine, for as long as the block lasts.

    A path of this machine is itself.

    Raises:
        CheckpointError: it cannot be fetched.
    """
    if not is_url(path):
        yield local(path)
        return
    with _folder(str(path), CheckpointError) as folder:
        store = Store.at(str(path))
        name = str(path).rstrip("/").rpartition("/")[2]
        if "." in name and store.size() is not None:
            with _said(f"{folder / name}", str(path)):
                yield store.get("", folder / name)
            return
        with reading(str(path)):
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
        yield local(path)
        return
    store = Store.at(str(path))
    _refuse_other(store)
    with _folder(str(path), SaveError) as folder:
        yield folder / "checkpoint"
        _send(store, folder / "checkpoint")


def _fetch(store: Store, folder: Path) -> None:
    """Fetch a checkpoint, or of a run what `find` looks at: the pointer and the checkpoint that it names."""
    whole = _whole(store, folder)
    if whole.size(MANIFEST) is not None:
        _fetch_checkpoint(whole, folder)
        return
    run, inside = store.inside(FOLDER), folder / FOLDER
    inside.mkdir()
    name = _pointed(run, inside) or _highest(run, inside)
    if name is not None:  # otherwise `find` says what was expected
        (inside / name).mkdir()
        _fetch_checkpoint(_whole(run.inside(name), inside / name), inside / name)


def _pointed(run: Store, inside: Path) -> str | None:
    """Read which checkpoint is the last one of a run, as it is read here."""
    size, where = run.size(LAST), f"{run.url}/{LAST}"
    if size is None:
        return None
    raw = run.get(LAST, inside / "pointer").read_bytes() if size <= LONGEST else b""
    with forgiving():
        if size > LONGEST:
            raise CheckpointError(f"{where}: expected the name of a checkpoint, found {size} bytes")
        return named(raw, where)
    return None


def _highest(run: Store, inside: Path) -> str | None:
    """Find the last checkpoint of a run that has no good pointer; what has no manifest is not there."""
    names = sorted((name for name in run.names() if _NAME.fullmatch(name)), key=number)
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
def _folder(url: str, kind: type[CheckpointError]) -> Iterator[Path]:
    """Have a folder on this machine that errors call by its URL; an error of this kind if there is no room for it."""
    with ExitStack() as stack:
        try:
            name = stack.enter_context(TemporaryDirectory(prefix="purerun-", ignore_cleanup_errors=True))
        except OSError as error:
            raise kind(
                f"{url}: goes through temporary space of this machine, where nothing can be written: "
                f"{cause(error)}; free some, or set TMPDIR to another folder"
            ) from error
        stack.enter_context(_said(name, url.rstrip("/")))
        yield Path(name)


@contextmanager
def _said(here: str, url: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise type(error)(str(error).replace(here, url)) from error
