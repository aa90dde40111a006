"""A guard around each test: the settings of the process are as they were before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def _settings() -> dict[str, object]:
    return {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(autouse=True)
def _settings_kept() -> Iterator[None]:
    before = _settings()
    yield

    assert _settings() == before
