"""Checkpoints made up by somebody who knows the format and wants them to be believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def sha(raw):
    return hashlib.sha256(raw).hexdigest()


def signed(content):
    """Write a manifest down with a right checksum; of a text, all but the checksum is given."""
    text = content if isinstance(content, str) else json.dumps({**content, "checksum": ""}, indent=1) + "\n"
    end = text.rindex('"\n}\n')
    return (text[:end] + sha(text.encode()) + text[end:]).encode()


def content_of(directory):
    """Read a manifest as the JSON that it is."""
    content = json.loads((Path(directory) / "manifest.json").read_text())
    del content["checksum"]
    return content


def tensors(header, data=b"", length=None):
    """Make a safetensors file from its header (a text, or what JSON makes a text of) and its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def fitting(content, raw):
    """Make a manifest say of a tensors file what is true of its size and its header."""
    length = min(int.from_bytes(raw[:8], "little"), 100_000_000)
    size = {"bytes": len(raw), "header": sha(raw[: 8 + length])}
    return {**content, "files": {"state.safetensors": size}}


def forge(directory, manifest, raw):
    """Write a checkpoint down."""
    Path(directory).mkdir(parents=True)
    (Path(directory) / "manifest.json").write_bytes(manifest)
    (Path(directory) / "state.safetensors").write_bytes(raw)
