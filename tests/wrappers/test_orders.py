"""The table of orders: what it refuses is refused with its reason, what it allows trains, and the docs hold it."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.wrappers import orders

ROOT = Path(__file__).parents[2]
WRAPPERS = {
    "Accumulate": pr.Accumulate(2),
    "AnnealedEMA": pr.AnnealedEMA(0.9),
    "Clip": pr.Clip(norm=0.1),
    "Clip by value": pr.Clip(value=0.01),
    "Compile": pr.Compile(),
    "DataParallel": pr.DataParallel(shards=2),
    "Dropout": pr.Dropout(0.3),
    "EMA": pr.EMA(0.9),
    "Masters": pr.Masters(),
    "Microbatch": pr.Microbatch(2),
    "Precision": pr.Precision(),
    "Precision with a scale": pr.Precision("float16"),
    "Remat": pr.Remat("0"),
    "SWA": pr.SWA(),
    "SkipNonFinite": pr.SkipNonFinite(),
    "Vmap": pr.Vmap(2, hyper={"lr": [0.1, 0.05]}),
}
SECONDS = ("Compile",)
"""Kinds that take a compiler, and so are tried by option only."""


def loss(model, x):
    """Compute a mean over samples, in float32 whatever the model has."""
    return model(x.to(next(model.parameters()).dtype)).float().square().mean()


def bare(*kinds):
    """Make a step that all of these kinds can stand around by themselves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    if "Masters" in kinds:
        model = model.bfloat16()
    return pr.TrainStep(model, loss, pr.optim.SGD(lr=0.1), engine="func" if "Vmap" in kinds else "autograd")


def pairs(*, allowed):
    """List pairs of kinds, the inner one first, as parameters of a test."""
    return [
        pytest.param(inner, outer, id=f"{inner} in {outer}", marks=_cost(inner, outer) if allowed else ())
        for inner, outer in product(WRAPPERS, repeat=2)
        if (orders.reason(inner, outer) is None) == allowed
    ]


def _cost(*kinds):
    return [pytest.mark.slow] if set(kinds) & set(SECONDS) else []


def test_each_kind_has_its_row():
    """A wrapper that is not in the table is not finished."""
    assert set(orders.PLACES) == set(WRAPPERS) == {wrapper.kind for wrapper in WRAPPERS.values()}
    made = {type(wrapper).__name__ for wrapper in WRAPPERS.values()}
    ours = {
        name
        for name in pr.wrappers.__all__
        if isinstance(kind := getattr(pr.wrappers, name), type)
        and issubclass(kind, pr.Wrapper)
        and kind is not pr.Wrapper
    }
    assert ours == made
    named = {kind for refusal in orders.REFUSALS for kind in (*refusal.inner, *refusal.outer)}
    assert named <= set(orders.PLACES)


@pytest.mark.parametrize(("inner", "outer"), pairs(allowed=False))
def test_what_makes_no_sense_is_refused_with_the_reason(inner, outer):
    """Next to each other, and with something between them."""
    step = pr.wrap(bare(*({inner, outer} if inner != "Remat" else {inner})), WRAPPERS[inner])
    said = re.escape(f"expected no {outer} around {inner}: {orders.reason(inner, outer)}")
    with pytest.raises(ValueError, match=said):
        pr.wrap(step, WRAPPERS[outer])
    between = pr.Precision() if "Precision" not in f"{inner} {outer}" and "Compile" != inner else None
    if between is not None:
        with pytest.raises(ValueError, match=said):
            pr.wrap(step, between, WRAPPERS[outer])


@pytest.mark.parametrize(("inner", "outer"), pairs(allowed=True))
def test_what_is_allowed_trains_and_resumes(inner, outer):
    """Five iterations, each a function of the state: from the third one on, again, the same numbers come."""
    step = pr.wrap(bare(inner, outer), WRAPPERS[inner], WRAPPERS[outer])
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    states = [step.init(seed=3)]
    for turn in range(5):
        states.append(step(states[-1], x + turn))
    again = pr.testing.rebuilt(states[2])
    for turn in range(2, 5):
        again = step(again, x + turn)

    assert pr.digest(states[5]) == pr.digest(again)
    assert not torch.equal(states[0]["params", "0.weight"], states[5]["params", "0.weight"])


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_line_search_is_refused_by_those_that_could_not_follow_it(kind):
    """With the reason; the others train by it."""
    search = pr.optim.Torch(torch.optim.LBFGS, lr=0.1, max_iter=2)
    step = pr.TrainStep(bare(kind).model, loss, search)
    if why := orders.SEARCHES.get(kind):
        with pytest.raises(ValueError, match=re.escape(f"that searches along a line: {why}")):
            pr.wrap(step, WRAPPERS[kind])
    else:
        wrapped = pr.wrap(step, WRAPPERS[kind])
        assert wrapped(wrapped.init(), torch.ones(4, 3))["metrics", "loss"].isfinite()


def test_a_wrapper_of_one_s_own_may_stand_anywhere():
    """The table knows nothing of it; its neighbours are still looked at."""

    class Mine(pr.Wrapper):
        pass

    assert ["Mine", "EMA"] == pr.wrappers.kinds(pr.wrap(bare(), Mine(), pr.EMA()))
    with pytest.raises(ValueError, match="expected no SkipNonFinite around Precision with a scale"):
        pr.wrap(bare(), pr.Precision("float16"), Mine(), pr.SkipNonFinite())


def test_the_docs_hold_the_table():
    """As the code writes it; `make orders` prints it."""
    assert orders.table() in (ROOT / "docs" / "wrappers.md").read_text()
