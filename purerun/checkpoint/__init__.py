"""Checkpoints: a state written down as a directory of plain data, and read back.

A checkpoint is `state.safetensors` and `manifest.json`.  Nothing in either can become
code: no pickle, and no name that is imported.
"""

from purerun.checkpoint.best import Best, bests
from purerun.checkpoint.error import CheckpointError, SaveError
from purerun.checkpoint.export import export, publish_weights
from purerun.checkpoint.layout import name_of, names, path_of, path_of_name, remove, sweep
from purerun.checkpoint.locate import Found, find, newest
from purerun.checkpoint.manifest import JSON, File, Kind, Manifest, encoded
from purerun.checkpoint.matching import Match, WeightsDiffer
from purerun.checkpoint.place import has_scheme, is_url
from purerun.checkpoint.pointer import LostPointer, last, point, pointed, pointers, unpoint
from purerun.checkpoint.pretrained import Pretrained
from purerun.checkpoint.read import load
from purerun.checkpoint.remote import fetched, read_manifest
from purerun.checkpoint.retention import NotRemoved, kept, prune
from purerun.checkpoint.taking import load_weights
from purerun.checkpoint.weights import read_weights
from purerun.checkpoint.write import save
from purerun.checkpoint.writer import Writer

__all__ = [
    "JSON",
    "Best",
    "CheckpointError",
    "File",
    "Found",
    "Kind",
    "LostPointer",
    "Manifest",
    "Match",
    "NotRemoved",
    "Pretrained",
    "SaveError",
    "WeightsDiffer",
    "Writer",
    "bests",
    "encoded",
    "export",
    "fetched",
    "find",
    "has_scheme",
    "is_url",
    "kept",
    "last",
    "load",
    "load_weights",
    "name_of",
    "names",
    "newest",
    "path_of",
    "path_of_name",
    "point",
    "pointed",
    "pointers",
    "prune",
    "publish_weights",
    "read_manifest",
    "read_weights",
    "remove",
    "save",
    "sweep",
    "unpoint",
]
