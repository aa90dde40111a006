"""A process with little memory that looks at checkpoints: `python -m tests.checkpoint.refusing MIB GOOD BAD...`.

It prints a line for each: the error that refused it, or the digest of what was loaded.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

import purerun as pr
from purerun.checkpoint import CheckpointError, read_manifest, read_weights


def seen(directory):
    """Say what comes of reading a checkpoint in each way."""
    try:
        read_manifest(directory)
        read_weights(directory)
        pr.load(directory, verify=False)
        return pr.digest(pr.load(directory))
    except CheckpointError as error:
        return f"CheckpointError {len(str(error).splitlines())} {str(error)[:300]}"


def main(allowed, good, *bad):
    torch.set_num_threads(1)
    seen(good)  # whatever is made once for all has been made now
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(allowed) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for directory in bad:
        print(f"{Path(directory).name}\t{seen(directory)}".splitlines()[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
