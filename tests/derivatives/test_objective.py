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


@pytest.mark.parametrize(
    "wrappers",
    [[pr.Dropout(0.2)], [pr.Precision()], [pr.Dropout(0.7), pr.Precision(), pr.Clip(norm=1.0)], [pr.Remat("*")]],
    ids=["dropout", "bf16", "both", "remat"],
)
def test_the_model_is_run_as_the_wrappers_say(wrappers):
    """The loss in training mode is the one that the step reports."""
    net = network(nn.Dropout(0.3)).float()
    step = pr.wrap(make(model=net, engine="autograd" if isinstance(wrappers[0], pr.Remat) else "func"), *wrappers)
    state, batch = step.init(seed=3), {name: leaf.float() for name, leaf in VAL.items()}
    trained = pr.loss_at(step, state, batch, training=True)

    torch.testing.assert_close(trained, step.grad(state, batch).metrics["loss"], rtol=0, atol=0)


def test_the_derivative_by_the_dropout_probability_is_that_at_the_masks():
    """The masks are as drawn, and what is left is divided by what is kept."""
    net = nn.Sequential(nn.Dropout(), nn.Linear(3, 1, bias=False)).double()
    step = pr.TrainStep(net, lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1), engine="func")
    step = pr.wrap(step, pr.Dropout(0.4))
    state, x = step.init(seed=0), torch.ones(64, 3, dtype=torch.float64)

    def at(hyper):
        return pr.loss_at(step, state.replace(hyper=hyper), x, training=True)

    hyper = dict(state["hyper"].items())
    value, slopes = at(hyper), torch.func.grad(at)(hyper)
    assert float(slopes["dropout"]) == pytest.approx(float(value.detach()) / 0.6, rel=1e-12)
    after = torch.func.grad(lambda hyper: pr.loss_at(step, pr.unroll(step, state.replace(hyper=hyper), [x] * 2), x))
    assert after(hyper)["lr"] != 0


def test_what_is_sent_to_other_processes_has_no_derivative():
    """It is refused in words, by all doors."""
    step = pr.wrap(make(), pr.DataParallel(2))
    state = step.init(seed=0)

    with pytest.raises(pr.StateError, match=r"no transform of torch.func around a step with DataParallel"):
        torch.func.grad(lambda hyper: pr.loss_at(step, pr.unroll(step, state.replace(hyper=hyper), batches(2)), VAL))(
            dict(state["hyper"].items())
        )
    with pytest.raises(ValueError, match=r"a wrapper that cannot be \(a sweep, Compile, DataParallel"):
        pr.per_sample(step, state, VAL)


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
