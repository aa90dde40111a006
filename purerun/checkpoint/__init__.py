"""Checkpoints: a state written down as a directory of plain data, and read back.

A checkpoint is `state.safetensors` and `manifest.json`.  Nothing in either can become
code: no pickle, and no name that is imported.
"""

from purerun.checkpoint.error import CheckpointError
from purerun.checkpoint.locate import Found, find, last, name_of, names, newest, path_of, point, remove
from purerun.checkpoint.manifest import JSON, File, Kind, Manifest, read_manifest
from purerun.checkpoint.read import load
from purerun.checkpoint.write import save

__all__ = [
    "JSON",
    "CheckpointError",
    "File",
    "Found",
    "Kind",
    "Manifest",
    "find",
    "last",
    "load",
    "name_of",
    "names",
    "newest",
    "path_of",
    "point",
    "read_manifest",
    "remove",
    "save",
]
