"""Files as others write them."""

from __future__ import annotations

import torch


def written(folder, content, name="a.pth", **options):
    """Write a file with torch.save: what is read from such files is what these tests are about."""
    torch.save(content, folder / name, **options)  # noqa: TID251
    return folder / name
