"""Where an error comes from: the line of the user's own code, among those of torch and of purerun."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch


def where(error: BaseException) -> str:
    """Say in which function, file and line the user's own code was when an error flew.

    That is the innermost line that is neither torch's nor ours; "in the model" where there is none.

    >>> try:
    ...     torch.zeros(2) @ torch.zeros(3)
    ... except RuntimeError as caught:
    ...     where(caught)
    'in <module>, <doctest ...>:2'
    >>> where(ValueError("never raised"))
    'in the model'
    """
    others = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(others)]
    return f"in {frames[-1].name}, {frames[-1].filename}:{frames[-1].lineno}" if frames else "in the model"
