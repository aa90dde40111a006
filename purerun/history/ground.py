"""The ground for a new run: a directory that is free, in which all files of the run appear at once, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from purerun.checkpoint import names, sweep
from purerun.checkpoint.error import reading, writing
from purerun.checkpoint.layout import FOLDER
from purerun.checkpoint.manifest import MANIFEST
from purerun.checkpoint.place import local
from purerun.checkpoint.publish import sync
from purerun.history.error import HistoryError
from purerun.recipe.place import LOG, RECIPE, holds_run
from purerun.sinks.claim import claimed

_FRESH = ".fork"


def free(directory: str | os.PathLike[str]) -> Path:
    """Find out that a new run may have a directory.

    Raises:
        HistoryError: it holds a run, or lies where a run keeps its checkpoints and removes what is old.
        CheckpointError: it cannot be looked at.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.save(pr.testing.counted(iter=3), f"{folder}/a")
    ...     free(f"{folder}/a/b")
    Traceback (most recent call last):
    ...
    purerun.history.error.HistoryError: .../a/b lies in the checkpoint .../a; choose another place for the new run
    """
    place = local(directory)
    with reading(place):
        real = place.resolve()
        for folder in (real, *real.parents):
            if (folder / MANIFEST).exists():
                raise HistoryError(f"{place} lies in the checkpoint {folder}; choose another place for the new run")
            if folder.name == FOLDER and names(folder.parent):
                raise HistoryError(
                    f"{place} lies among the checkpoints of {folder.parent}; choose another place for the new run"
                )
    if holds_run(place) and not _is_unfinished(place):
        raise HistoryError(f"{place} holds a run; choose another place for the new one")
    return place


@contextmanager
def built(place: Path) -> Iterator[Path]:
    """Have a folder to write the files of a run into, which come to their place at the end of the block.

    If anything goes wrong the place is as it was, and not there if it was not there.

    Args:
        place: the directory of the run; it is `free`.

    Raises:
        SinkError: another process trains there.
        SaveError: nothing can be written there.
    """
    made = [folder for folder in (place, *place.parents) if not folder.exists()]
    fresh = place / _FRESH
    try:
        with claimed([place]):
            _cleared(place)
            with writing(place):
                fresh.mkdir(parents=True)
            yield fresh
            with writing(place):
                _moved(fresh, place)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise


def _cleared(place: Path) -> None:
    """Remove what a killed save or a killed fork has left half done."""
    sweep(place)
    with writing(place):
        if _is_unfinished(place):
            (place / LOG).unlink(missing_ok=True)
        shutil.rmtree(place / _FRESH, ignore_errors=True)


def _moved(fresh: Path, place: Path) -> None:
    """Bring the files of a run to their place, its checkpoints last: with them, it is a run."""
    try:
        for name in (RECIPE, LOG, FOLDER):
            (fresh / name).replace(place / name)
            sync(place)
    except OSError:
        for name in (RECIPE, LOG):
            with suppress(OSError):
                (place / name).unlink()
        raise
    shutil.rmtree(fresh, ignore_errors=True)


def _is_unfinished(place: Path) -> bool:
    """Say whether a fork was killed here before it brought its checkpoints to their place."""
    return (place / _FRESH / FOLDER).exists() and not names(place)
