"""Dropout as a hyper-parameter: the masks are those of layers that have the probability themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import purerun as pr
from purerun.bind import ModelError
from purerun.testing import check_everything
from tests.wrappers.sweeping import SGD, Scales, batches, follow, gap, loss, make_step, same

RATES = [0.0, 0.3, 0.9, 1.0]


class Channels(nn.Module):
    """Dropout of whole features, and of single numbers."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.features, self.numbers, self.inner = nn.Dropout1d(rate), nn.Dropout(rate, inplace=True), Scales(rate)

    def forward(self, x):
        """Map [n, 6] to [n, 3]."""
        return self.inner(self.numbers(self.features(x[:, :, None].expand(-1, -1, 4) * 1.5)).sum(-1))


def with_rate(model, rate):
    """Copy a model, with another probability in each layer."""
    other = copy.deepcopy(model)
    for layer in other.modules():
        if isinstance(layer, nn.Dropout | nn.Dropout1d):
            layer.p = rate
    return other


def layered(model, rate, seed, seen, **options):
    """Train a model whose layers have the probability."""
    step = pr.TrainStep(with_rate(model, rate), loss, SGD, **options)
    state = step.init(seed)
    for batch in seen:
        state = step(state, batch)
    return state["params"]


def equal(a, b):
    """Say whether parameters are the same."""
    return all(torch.equal(leaf, b[name]) for name, leaf in a.items())


@pytest.mark.parametrize("engine", ["autograd", "func"])
@pytest.mark.parametrize("rate", RATES)
def test_a_single_run_is_that_of_its_layers(engine, rate):
    """With either engine, whatever probability the layers have."""
    step = pr.wrap(pr.TrainStep(Channels(), loss, SGD, engine=engine), pr.Dropout(rate))
    state = step.init(3)
    for batch in batches(3):
        state = step(state, batch)

    assert equal(layered(Channels(), rate, 3, batches(3), engine=engine), state["params"])


def test_each_member_of_a_sweep_has_its_own():
    """Bit for bit its own solo run, and that of layers with its probability."""
    step = pr.wrap(make_step(Channels()), pr.Dropout())
    state, alone = follow(pr.wrap(step, pr.Vmap(4, hyper={"dropout": RATES})), step, batches(3))

    assert same(state, alone)
    for place, member in enumerate(pr.unstack(state)):
        assert equal(layered(Channels(), RATES[place], 5 + place, batches(3), engine="func"), member["params"])


@pytest.mark.slow
def test_a_compiled_sweep_draws_the_same():
    """Inside of a graph, too."""
    step = pr.wrap(make_step(Scales()), pr.Dropout())
    sweep = pr.wrap(step, pr.Vmap(2, hyper={"dropout": [0.2, 0.7]}), pr.Compile("grad"))

    assert gap(*follow(sweep, step, batches(2))) < 1e-6


def test_evaluation_drops_nothing():
    """The probability is one of training."""
    model = Channels()
    step = pr.wrap(make_step(model), pr.Dropout(0.9))

    assert equal(
        {"y": with_rate(model, 0.0)(batches(1)[0][0])}, {"y": pr.PredictStep(model)(step.init(), batches(1)[0])}
    )


class Attention(nn.Module):
    """Dropout that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        """Map [n, 6] to [n, 3]."""
        y = F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.1)[0]
        return y[:, :3] * self.scale


def test_what_has_a_probability_of_its_own_is_refused():
    """Better than to leave it as it is without a word."""
    step = pr.wrap(make_step(Attention()), pr.Dropout(0.1))
    with pytest.raises(ModelError, match="got scaled_dot_product_attention with a probability of its own"):
        step(step.init(), batches(1)[0])


class Recurrent(nn.Module):
    """Dropout in the middle of a kernel."""

    def __init__(self, kind, p):
        super().__init__()
        self.layer = kind(6, 3, num_layers=2, dropout=p, batch_first=True)

    def forward(self, x):
        """Map [n, 6] to [n, 3]."""
        return self.layer(x[None])[0][0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_that_drop_are_refused(kind):
    """And others are none of its business."""
    x = batches(1)[0]
    step = pr.wrap(make_step(Recurrent(kind, 0.5)), pr.Dropout(0.1))
    with pytest.raises(ModelError, match="with a probability of its own"):
        step(step.init(), x)

    fine = pr.wrap(make_step(Recurrent(kind, 0.0)), pr.Dropout(0.1))
    assert fine(fine.init(), x)["metrics", "loss"].isfinite()


class Direct(nn.Module):
    """Calls one function."""

    def __init__(self, function):
        super().__init__()
        self.scale, self.function = nn.Parameter(torch.ones(3)), function

    def forward(self, x):
        """Map [n, 6] to [n, 3]."""
        return self.function(x)[:, :3] * self.scale


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: torch.alpha_dropout(x, p=0.5, train=True),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], None, 0.5)[0],
        lambda x: F.alpha_dropout(x, 0.5, True),
    ],
    ids=["dropout", "alpha", "attention", "alpha layer"],
)
def test_functions_that_drop_are_refused(function):
    """Wherever the probability stands."""
    step = pr.wrap(make_step(Direct(function)), pr.Dropout(0.1))
    with pytest.raises(ModelError, match="with a probability of its own"):
        step(step.init(), batches(1)[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None])[0],
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], None, 0.0)[0],
        lambda x: torch.dropout(x, 0.5, False),
        lambda x: F.alpha_dropout(x, 0.5),
    ],
    ids=["attention", "attention at 0", "not training", "alpha, not training"],
)
def test_functions_that_do_not_drop_are_let_alone(function):
    """By their defaults too."""
    step = pr.wrap(make_step(Direct(function)), pr.Dropout(0.1))

    assert step(step.init(), batches(1)[0])["metrics", "loss"].isfinite()


def test_every_law_holds():
    """Alone, and in a window."""

    def run():
        step = pr.wrap(pr.TrainStep(Channels(), loss, SGD), pr.Dropout(0.3), pr.Accumulate(2))
        return pr.TrainLoop(step, iters=3), batches(3)

    loop, seen = run()

    check_everything(loop, loop.step.init(3), seen, again=run)
