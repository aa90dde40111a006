"""Reduce on plateau: torch's own scheduler, as a hook with a slot."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purerun.hooks import ReduceOnPlateau
from purerun.state import StateError, missing
from purerun.testing import check_hooks_write_only_declared, counted, rebuilt

OPTIONS = {
    "defaults": {"patience": 1},
    "greater": {"rule": "greater", "patience": 0, "factor": 0.5},
    "cooldown": {"patience": 0, "cooldown": 2, "factor": 0.3},
    "absolute": {"threshold": 0.05, "threshold_rule": "abs", "patience": 0},
    "absolute, greater": {"threshold": 0.05, "threshold_rule": "abs", "rule": "greater", "patience": 1},
    "floor": {"min_value": 0.02, "patience": 0, "factor": 0.4},
    "eps": {"eps": 0.01, "patience": 0, "factor": 0.5},
}


def run(hook, values, *, reload=False, lr=0.1):
    """Feed scores to a hook, and list the rates after each."""
    state = counted(epoch=1, hyper={"lr": lr})
    state = state.replace(missing(hook.slots(state), state))
    rates = []
    for value in values:
        state = hook(state.replace(scores={"loss": value}))
        state = rebuilt(state) if reload else state
        rates.append(state["hyper", "lr"].item())
    return rates


def torch_run(hook, values, lr=0.1):
    """Do the same with torch's scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode={"less": "min", "greater": "max"}[hook.rule],
        factor=hook.factor,
        patience=hook.patience,
        threshold=hook.threshold,
        threshold_mode=hook.threshold_rule,
        cooldown=hook.cooldown,
        min_lr=hook.min_value,
        eps=hook.eps,
    )
    rates = []
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@given(values=st.lists(st.sampled_from([0.0, 0.1, 0.12, 0.5, 0.501, 1.0, 2.0]), min_size=1, max_size=25))
def test_it_is_torch_s_scheduler(options, values):
    """The same rates for the same scores, whatever they do; also when it is saved and loaded each time."""
    hook = ReduceOnPlateau("loss", **options)
    expected = torch_run(hook, values)

    assert expected == pytest.approx(run(hook, values), rel=1e-12)
    assert expected == pytest.approx(run(hook, values, reload=True), rel=1e-12)


def test_nan_is_never_better():
    """A score that is NaN counts as bad, as in torch."""
    hook = ReduceOnPlateau("loss", patience=0)
    values = [1.0, math.nan, math.nan, 0.5]

    assert torch_run(hook, values) == pytest.approx(run(hook, values))


def test_other_hyper_parameters_can_be_lowered():
    """By their name."""
    hook = ReduceOnPlateau("loss", param="weight_decay", patience=0, factor=0.5)
    state = counted(epoch=1, hyper={"lr": 0.1, "weight_decay": 0.2}, scores={"loss": 1.0})
    state = state.replace(missing(hook.slots(state), state))

    assert (0.1, 0.1) == tuple(hook(hook(state))["hyper", name].item() for name in ("lr", "weight_decay"))


def test_a_metric_of_the_step_can_be_watched():
    """When no score has the name."""
    hook = ReduceOnPlateau("loss", patience=0)
    state = counted(epoch=1, hyper={"lr": 0.1}, metrics={"loss": 1.0})
    state = state.replace(missing(hook.slots(state), state))

    assert pytest.approx(0.01) == hook(hook(state))["hyper", "lr"].item()


def test_an_absent_score_is_named():
    """With what there is."""
    hook = ReduceOnPlateau("f1")
    state = counted(epoch=1, hyper={"lr": 0.1}, scores={"loss": 1.0})
    state = state.replace(missing(hook.slots(state), state))
    with pytest.raises(StateError, match=r"'f1' to monitor, got \['loss'\]"):
        hook(state)


def test_it_writes_what_it_declares():
    """Its slot, and the hyper-parameters."""
    state = counted(epoch=1, hyper={"lr": 0.1}, scores={"loss": 1.0})
    check_hooks_write_only_declared(ReduceOnPlateau("loss", patience=0), state)

    assert {"plateau", "hyper"} == set(ReduceOnPlateau("loss").writes)


def test_two_of_them_have_two_slots():
    """One for each monitored score."""
    first, second = ReduceOnPlateau("loss"), ReduceOnPlateau("top", slot="other")
    state = counted(hyper={"lr": 0.1})

    assert ({"plateau"}, {"other"}) == (set(first.slots(state)), set(second.slots(state)))


@pytest.mark.parametrize(
    "options",
    [{"factor": 1.0}, {"factor": 0.0}, {"patience": -1}, {"rule": "min"}, {"threshold_rule": "x"}, {"cooldown": -1}],
    ids=str,
)
def test_impossible_options_are_refused(options):
    """When it is made."""
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` should"):
        ReduceOnPlateau("loss", **options)


def test_it_is_a_value():
    """It compares and evolves."""
    assert ReduceOnPlateau("loss") == ReduceOnPlateau("loss")
    assert 0.5 == attrs.evolve(ReduceOnPlateau("loss"), factor=0.5).factor
