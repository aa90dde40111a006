"""The modes of the process: kept, so that what one part changes is not felt by the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from purerun.random import Key, keyed_everywhere


@contextmanager
def modes_kept() -> Iterator[None]:
    """Put back threads, gradients, dtype, determinism and the global generators at the end of a block.

    >>> with modes_kept():
    ...     torch.set_default_dtype(torch.float64)
    >>> torch.get_default_dtype()
    torch.float32
    """
    kept: list[tuple[Callable[[Any], Any], Any]] = [
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
        (torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled()),
    ]
    with keyed_everywhere(Key.of(0, "doctor")):
        try:
            yield
        finally:
            for put, value in kept:
                put(value)
