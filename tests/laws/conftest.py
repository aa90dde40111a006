"""Small runs for the laws to hold on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

import purerun as pr
from purerun.testing import MODELS, Case

MOMENTUM = pr.optim.SGD(lr=0.1, momentum=0.9)
CASES = {case.name: case for case in MODELS}


@attrs.frozen
class Run:
    """A loop, where it begins and what it reads; `again` makes both from other weights, as a new process would."""

    loop: pr.TrainLoop
    state: pr.State
    loader: Any
    again: Callable[[], tuple[pr.TrainLoop, Any]]


def make_run(
    case: str | Case = "dropout",
    optimizer: Any = MOMENTUM,
    *wrappers: pr.Wrapper,
    samples: int = 20,
    loader: Callable[[Any], Any] | None = None,
    loss: Any = None,
    step: Any = None,
    **loop: Any,
) -> Run:
    """Make a run of a case: two epochs of three batches, the last of them smaller."""
    case = CASES[case] if isinstance(case, str) else case
    data = pr.data.Tensors(**case.data(samples=samples))
    options = loop or {"epochs": 2}

    def make(seed: int) -> tuple[pr.TrainLoop, Any]:
        inner = pr.TrainStep(case.module(seed), loss or case.loss, optimizer, **(step or {}))
        read = loader(data) if loader else pr.Loader(data, batch_size=8, shuffle=True)
        return pr.TrainLoop(pr.wrap(inner, *wrappers), **options), read

    first, read = make(1)
    return Run(first, first.step.init(seed=3), read, lambda: make(2))


@pytest.fixture(name="make_run", scope="session")
def _make_run() -> Callable[..., Run]:
    return make_run
