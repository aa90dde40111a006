"""How a directory of files comes into being: all of it or nothing, and never over the only good one.

The directory is filled under the name `.NAME.new` beside its place, made durable, and
renamed.  One that stands there already steps aside as `.NAME.old` for the moment between
two renames; whoever finds the place empty looks there (`whole`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from purerun.checkpoint.error import CheckpointError
from purerun.checkpoint.manifest import MANIFEST, TENSORS, read_manifest

Content = TypeVar("Content")


def publish(directory: Path, fill: Callable[[Path], Content]) -> Content:
    """Make a directory, or replace one.

    Args:
        directory: the place.
        fill: writes the files into the folder that it is given, each with `sync`, the manifest last.

    Returns:
        What `fill` returned.

    Raises:
        CheckpointError: something else is in the place.
    """
    _refuse_other(directory)
    _make_folders(directory.parent)
    fresh, old = _beside(directory)
    settle(directory)
    fresh.mkdir()
    try:
        content = fill(fresh)
        sync(fresh)
        if directory.exists():
            directory.replace(old)
        fresh.replace(directory)
    except BaseException:
        _back(directory)
        raise
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)
    return content


def whole(directory: Path) -> Path:
    """Find where a directory is: at its place, or beside it after a crash between two renames."""
    if directory.exists():
        return directory
    fresh, old = _beside(directory)
    return next((path for path in (fresh, old) if _good(path)), directory)


def settle(directory: Path) -> None:
    """Finish what a crash left half done, so that nothing is beside the place: what was good is at it."""
    found = whole(directory)
    if found != directory and found.exists():
        found.replace(directory)
        sync(directory.parent)
    for path in (*_beside(directory), _gone(directory)):
        if path.exists():
            shutil.rmtree(path)


def retire(directory: Path) -> None:
    """Remove a directory; it is out of sight before any of it is gone.

    Raises:
        CheckpointError: it holds something else than a checkpoint does, and stays as it is.
    """
    if others := _others(directory):
        raise CheckpointError(
            f"{directory}: not removed, since it holds {', '.join(others[:3])} beside a checkpoint; move that elsewhere"
        )
    gone = _gone(directory)
    shutil.rmtree(gone, ignore_errors=True)
    if directory.exists():
        directory.replace(gone)
        sync(directory.parent)
    for path in (gone, *_beside(directory)):
        shutil.rmtree(path, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write a small file: the old text or the new one, never a part."""
    fresh = file.with_name(f".{file.name}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        sync(fresh)
        fresh.replace(file)
    except OSError:
        with suppress(OSError):  # a disk that takes nothing lets nothing go, either
            fresh.unlink()
        raise
    sync(file.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _back(directory: Path) -> None:
    """After a failure: the old one to its place, the new one away.  The failure itself is what gets raised."""
    fresh, old = _beside(directory)
    if old.exists() and not directory.exists():
        try:
            old.replace(directory)
        except OSError:
            return  # whole() finds both
    shutil.rmtree(fresh, ignore_errors=True)


def _good(directory: Path) -> bool:
    try:
        read_manifest(directory)
    except CheckpointError:
        return False
    return True


def _beside(directory: Path) -> tuple[Path, Path]:
    return directory.with_name(f".{directory.name}.new"), directory.with_name(f".{directory.name}.old")


def _gone(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.gone")


def _others(directory: Path) -> list[str]:
    """List what is in a directory and belongs to no checkpoint."""
    there = directory.is_dir() and not directory.is_symlink()
    return sorted({entry.name for entry in directory.iterdir()} - {MANIFEST, TENSORS}) if there else []


def _refuse_other(directory: Path) -> None:
    if directory.is_dir() and not directory.is_symlink():
        if others := _others(directory):
            what = f"a folder that holds {', '.join(others[:3])}"
        elif directory == Path.cwd():
            what = "the folder that this process works in"
        else:
            return
    elif directory.is_symlink() or directory.exists():
        what = "a file or a link"
    else:
        return
    raise CheckpointError(
        f"{directory}: expected a checkpoint to replace, or nothing, found {what}; choose another name"
    )


def _make_folders(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync(path.parent)
