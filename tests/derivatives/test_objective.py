"""The loss at a state: the module's own, as a number with a derivative."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr
from tests.derivatives.training import batches, loss, make, network, points

VAL = points(16, "val")


def test_it_is_the_module_s_own():
    """In evaluation mode, and in training mode under the chance of the iteration."""
    step = make(model=network(nn.BatchNorm1d(5), nn.Dropout(0.3)))
    state = pr.unroll(step, step.init(seed=1), batches(3))
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.3))
    model.load_state_dict({**state["params"], **state["buffers"]})

    assert float(loss(model.eval(), VAL).detach()) == float(pr.loss_at(step, state, VAL))
    trained = float(pr.loss_at(step, state, VAL, training=True))
    assert trained == float(step.grad(state, VAL).metrics["loss"])


def test_what_a_loss_of_several_terms_minimises():
    """Terms without a derivative are reported only, outside of transforms as well."""

    def terms(model, batch):
        return {"error": loss(model, batch), "count": torch.tensor(1000.0), "more": loss(model, batch)}

    step = make(loss=terms)
    state = step.init(seed=0)

    assert 2 * float(loss(step.model, VAL).detach()) == pytest.approx(float(pr.loss_at(step, state, VAL)), rel=1e-15)


def test_a_population_is_refused():
    """And so is a step without a model to train."""
    step = make()
    sweep = pr.wrap(step, pr.Vmap(2))

    with pytest.raises(pr.StateError, match="a population of 2"):
        pr.loss_at(sweep, sweep.init(seed=0), VAL)
