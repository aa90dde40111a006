"""The gradient noise scale: unbiased where signal and noise are known, and the paper's formulas where they apply."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.random import Key
from tests.derivatives.training import batches, make, points

SIZE, DIM, TURNS = 16, 6, 400
MEAN = torch.linspace(-1, 2, DIM, dtype=torch.float64)
DEVIATION = torch.linspace(0.5, 3, DIM, dtype=torch.float64)
SIGNAL, NOISE = float(MEAN.square().sum()), float(DEVIATION.square().sum())


def linear():
    """Make a step whose loss is the mean of `w * x`: the gradient of a sample is the sample."""
    return pr.TrainStep(
        nn.Linear(DIM, 1, bias=False).double(), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1), engine="func"
    )


def draws(turn):
    """Draw a batch of samples with a known mean and covariance."""
    generator = Key.of(0, "noise", turn).generator()
    return MEAN + DEVIATION * torch.randn(SIZE, DIM, dtype=torch.float64, generator=generator)


def averaged(estimates):
    """Make the mean of estimates, and the standard error of each of its parts."""
    pairs = torch.stack([torch.stack([each.signal, each.noise]) for each in estimates])
    return pairs.mean(0), pairs.std(0) / len(estimates) ** 0.5


ESTIMATES = {
    "samples": lambda step, state, x: pr.noise_scale(pr.per_sample(step, state, x)),
    "parts": lambda step, state, x: pr.noise_scale([step.grad(state, part) for part in x.split(4)]),
    "parts of many sizes": lambda step, state, x: pr.noise_scale(
        [step.grad(state, part) for part in x.split([1, 2, 5, 8])]
    ),
}


@pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES.keys())
def test_estimates_are_unbiased(estimate):
    """Over 400 batches their means are the known squared norm and trace, within four standard errors."""
    step = linear()
    state = step.init(seed=0)
    means, errors = averaged([estimate(step, state, draws(turn)) for turn in range(TURNS)])

    assert ((means - torch.tensor([SIGNAL, NOISE])).abs() < 4 * errors).all()
    assert (errors < torch.tensor([0.1 * SIGNAL, 0.1 * NOISE])).all(), "or the check above would say nothing"


def test_a_biased_estimate_would_be_seen():
    """The squared norm of the batch's gradient itself is too large by tr(Sigma) / B, and the test above would fail."""
    step = linear()
    state = step.init(seed=0)
    squares = [step.grad(state, draws(turn)).grads["weight"].square().sum() for turn in range(TURNS)]
    means, errors = averaged([pr.Noise(square, torch.zeros(())) for square in squares])

    assert float(means[0] - SIGNAL) > 4 * float(errors[0])
    assert float(means[0] - SIGNAL) == pytest.approx(NOISE / SIZE, abs=4 * float(errors[0]))


def test_it_is_the_sample_covariance():
    """From single samples, the noise is the trace of torch's unbiased covariance, summed over all parameters."""
    step, batch = make(), points(12, "batch")
    each = pr.per_sample(step, step.init(seed=0), batch)
    rows = torch.cat([grad.flatten(1) for grad in each.grads.values()], 1)
    noise = pr.noise_scale(each)

    assert float(torch.cov(rows.T).trace()) == pytest.approx(float(noise.noise), rel=1e-12)
    assert float(rows.mean(0).square().sum() - noise.noise / 12) == pytest.approx(float(noise.signal), rel=1e-12)
    assert float(noise.noise / noise.signal) == float(noise.scale)


def test_it_is_the_two_estimators_of_the_paper():
    """With parts of one size: those of appendix A.1, with the mean of the small batches' squared norms."""
    step, batch = make(), points(12, "batch")
    state = step.init(seed=0)
    parts = [step.grad(state, {name: tensor[i : i + 3] for name, tensor in batch.items()}) for i in range(0, 12, 3)]

    def square(grads):
        return sum(grad.square().sum() for grad in grads.grads.values())

    small, large = torch.stack([*map(square, parts)]).mean(), square(step.grad(state, batch))
    signal = (12 * large - 3 * small) / (12 - 3)
    noise = (small - large) / (1 / 3 - 1 / 12)
    several = pr.noise_scale(parts)
    two = pr.Noise.between(small=3, small_square=small, large=12, large_square=large)

    for expected, one, other in ((signal, several.signal, two.signal), (noise, several.noise, two.noise)):
        assert float(expected) == pytest.approx(float(one), rel=1e-12)
        assert float(expected) == pytest.approx(float(other), rel=1e-12)


def test_during_an_accumulating_run():
    """The gradients that a window adds up are read anyway: they say the noise, and the run is none the worse."""
    step = pr.wrap(make(), pr.Accumulate(4))
    state = plain = step.init(seed=0)
    window, noises = [], []
    for batch in batches(8):
        plain = step(plain, batch)
        grads = step.grad(state, batch)
        state = step.update(state, grads)
        window.append(grads)
        if not int(state["accumulate", "count"]):
            noises.append(pr.noise_scale(window))
            window = []
    running = noises[0].moved(noises[1], keep=0.75)

    assert pr.digest(plain) == pr.digest(state)
    assert float(0.75 * noises[0].noise + 0.25 * noises[1].noise) == float(running.noise)
    assert all(float(noise.noise) > 0 for noise in noises)


def test_there_must_be_parts_to_compare():
    """One part has no spread, none is none, and two sizes are two."""
    step = linear()
    grads = step.grad(step.init(seed=0), draws(0))

    for parts in ([], [grads], grads):
        with pytest.raises(ValueError, match="at least two parts of a batch"):
            pr.noise_scale(parts)
    with pytest.raises(ValueError, match="small=4 and large=4"):
        pr.Noise.between(small=4, small_square=torch.ones(()), large=4, large_square=torch.ones(()))
