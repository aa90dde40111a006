"""What every test and every doctest starts from: one thread, a fixed seed, and the names that examples use."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

import purerun

# Sums of floats depend on the number of threads.  The variable is for the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# A shell makes what runs in its background deaf to Ctrl-C, and so what that starts; tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadlines: a busy machine is no fault of the code.
settings.register_profile("short", max_examples=30, derandomize=True, deadline=None, database=None)
settings.register_profile("long", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("short")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`."""
    parser.addoption("--long", action="store_true", help="run slow tests too, with many more examples")


def pytest_configure(config: pytest.Config) -> None:
    """Let `--long` choose the profile, unless the command line names one."""
    if config.getoption("--long") and not config.getoption("--hypothesis-profile"):
        settings.load_profile("long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this call or this machine does not run."""
    slow = pytest.mark.skip(reason="slow: runs with --long")
    cuda = pytest.mark.skip(reason="no CUDA device here")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--long"):
            item.add_marker(slow)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(cuda)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test at the same chance, so that their order does not matter."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - user code may read the legacy generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    """Give examples the two names that every script imports."""
    doctest_namespace["torch"] = torch
    doctest_namespace["pr"] = purerun
