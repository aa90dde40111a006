"""Every law on every model of the table, and on models made at random."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purerun.testing import MODELS, check_everything, random_case


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_every_law_holds_on_every_model(make_run, case):
    """Purity, separateness, constancy, values equal lease, and resume at every iteration in a new module."""
    run = make_run(case, epochs=1)

    check_everything(run.loop, run.state, run.loader, again=run.again)


@pytest.mark.parametrize("case", [case for case in MODELS if case.func], ids=lambda case: case.name)
def test_every_law_holds_under_the_func_engine(make_run, case):
    """The engine that can be mapped and differentiated obeys the same laws."""
    run = make_run(case, iters=3, step={"engine": "func"}, samples=16)

    check_everything(run.loop, run.state, run.loader, again=run.again)


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_every_law_holds_on_random_models(make_run, seed):
    """Stacks of layers that tie, freeze, normalise, drop and remember."""
    run = make_run(random_case(seed), iters=3, samples=16)

    check_everything(run.loop, run.state, run.loader, again=run.again)
