"""A folder of a remote file system: the few operations that checkpoints need, each saying where it failed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from purerun.checkpoint.error import CheckpointError, SaveError, brief


@attrs.frozen
class Store:
    """A folder of a remote file system.

    Attributes:
        system: fsspec's file system.
        root: the folder, as the file system calls it.
        url: as people call it.
    """

    system: Any
    root: str
    url: str

    @classmethod
    def at(cls, url: str) -> Store:
        """Find the file system of a URL.

        Raises:
            CheckpointError: there is none, or what it needs is not installed.
        """
        try:
            from fsspec.core import url_to_fs  # an optional part of purerun
        except ImportError as error:
            raise CheckpointError(f"{url}: needs fsspec; pip install 'purerun[remote]'") from error
        try:
            system, root = url_to_fs(url)
            system.invalidate_cache()  # what was listed before may have changed since
        except Exception as error:
            raise CheckpointError(f"{url}: expected a URL that fsspec knows: {brief(error)}") from error
        return cls(system, root.rstrip("/"), url.rstrip("/"))

    def beside(self) -> Store:
        """Where a checkpoint is made ready that replaces one."""
        if "/" not in self.root:
            return self.inside(".new")  # a bucket has nothing beside it that would be ours
        inner, outer = (text.rpartition("/") for text in (self.root, self.url))
        return Store(self.system, f"{inner[0]}/.{inner[2]}.new", f"{outer[0]}/.{outer[2]}.new")

    def inside(self, name: str) -> Store:
        """A folder in this one."""
        return Store(self.system, f"{self.root}/{name}", f"{self.url}/{name}")

    def size(self, name: str = "") -> int | None:
        """Say how many bytes a file has; None if it is not there."""
        try:
            about = self.system.info(self._path(name))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise CheckpointError(f"{self._url(name)}: cannot be looked at: {brief(error)}") from error
        return int(about["size"]) if about["type"] == "file" else None

    def names(self) -> list[str]:
        """List what is in the folder."""
        try:
            listed = self.system.ls(self.root, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise CheckpointError(f"{self.url}: cannot be listed: {brief(error)}") from error
        return [str(name).rstrip("/").rpartition("/")[2] for name in listed]

    def get(self, name: str, file: Path) -> Path:
        """Fetch a file."""
        try:
            self.system.get_file(self._path(name), str(file))
        except Exception as error:
            raise CheckpointError(f"{self._url(name)}: cannot be fetched: {brief(error)}") from error
        return file

    def put(self, file: Path, name: str) -> None:
        """Send a file, and look whether all of it has arrived."""
        with self._writing(name):
            self.system.makedirs(self.root, exist_ok=True)
            self.system.put_file(str(file), self._path(name))
            self.system.invalidate_cache()
        found, expected = self.size(name), file.stat().st_size
        if found != expected:
            raise SaveError(f"{self._url(name)}: sent {expected} bytes, found {found}; save again, or elsewhere")

    def copy(self, name: str, other: Store) -> None:
        """Copy a file to another folder of the same file system."""
        with self._writing(name):
            try:
                self.system.cp_file(self._path(name), other._path(name))
            except NotImplementedError:
                source, target = self.system.open(self._path(name), "rb"), self.system.open(other._path(name), "wb")
                with source, target:
                    shutil.copyfileobj(source, target)
            self.system.invalidate_cache()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.size(name) is not None:
            with self._writing(name):
                self.system.rm_file(self._path(name))
                self.system.invalidate_cache()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise SaveError(
                f"{self._url(name)}: cannot be written: {brief(error)}; free space or choose another place"
            ) from error

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url
