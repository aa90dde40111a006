"""Gradients of single samples: those of a loop over batches of one sample, whose mean is the batch's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.batch import BatchError
from purerun.bind import ModelError
from purerun.mapping import SweepError
from tests.derivatives.training import loss, make, network, points

BATCH = points(7, "batch")


def one_by_one(step, state, batch):
    """Compute the gradients of batches of one sample, each under the key of its place."""
    draft = pr.state.unseal(state)
    count = len(batch["x"])
    parts = [{name: tensor[place : place + 1] for name, tensor in batch.items()} for place in range(count)]
    return [step.read(draft, part, pr.Pass((place,))) for place, part in enumerate(parts)]


def check(each, alone, **tolerance):
    """Compare rows with samples."""
    for place, grads in enumerate(alone):
        for name, grad in grads.grads.items():
            torch.testing.assert_close(each.grads[name][place], grad, **tolerance)
        for name, value in grads.metrics.items():
            torch.testing.assert_close(each.metrics[name][place], value, **tolerance)


EXACT = {"rtol": 1e-12, "atol": 1e-14}


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 100])
def test_rows_are_those_of_a_loop(chunk):
    """Whatever the chunk; and their mean is the gradient of the batch."""
    step = make()
    state = step.init(seed=0)
    each = pr.per_sample(step, state, BATCH, chunk=chunk)

    check(each, one_by_one(step, state, BATCH), **EXACT)
    for name, grad in step.grad(state, BATCH).grads.items():
        torch.testing.assert_close(each.grads[name].mean(0), grad, **EXACT)
    assert [1.0] * 7 == each.weight.tolist()


@pytest.mark.parametrize("chunk", [None, 2])
def test_each_sample_has_a_chance_of_its_own(chunk):
    """Dropout masks do not depend on the chunk, and are those of as many micro-batches."""
    step = make(model=network(nn.Dropout(0.5)))
    state = pr.unroll(step, step.init(seed=4), [BATCH])
    each = pr.per_sample(step, state, BATCH, chunk=chunk)

    check(each, one_by_one(step, state, BATCH), **EXACT)
    for name, grad in pr.wrap(step, pr.Microbatch(7)).grad(state, BATCH).grads.items():
        torch.testing.assert_close(each.grads[name].mean(0), grad, **EXACT)
    same = {name: tensor[:1].repeat(7, 1) for name, tensor in BATCH.items()}
    rows = pr.per_sample(step, state, same, chunk=chunk).metrics["loss"].tolist()
    assert len(set(rows)) > 1, "copies of one sample have masks of their own"


def test_nothing_outside_notices():
    """The state, the module and torch's generator are as before."""
    step = make(model=network(nn.Dropout(0.5)))
    state, chance = step.init(seed=4), torch.get_rng_state()
    before = pr.digest(state)
    first, second = (pr.per_sample(step, state, BATCH).grads for _ in range(2))

    assert before == pr.digest(state)
    assert torch.equal(chance, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_samples_that_say_their_weight():
    """With `pr.Loss(sum, weight)` each row has its weight, and the mean by weight is the batch's gradient."""

    def masked(model, batch):
        errors = (model(batch["x"]) - batch["y"]).square() * batch["mask"]
        return pr.Loss(errors.sum(), batch["mask"].sum(), most=pr.Term(errors.max(), "max"))

    step, mask = make(loss=masked), torch.tensor([[1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 0]]).double()
    state, batch = step.init(seed=0), {**BATCH, "mask": mask}
    each = pr.per_sample(step, state, batch)
    share = each.weight / each.weight.sum()

    assert mask.sum(1).tolist() == each.weight.tolist()
    assert {"most": "max"} == dict(each.merges)
    check(each, one_by_one(step, state, batch), **EXACT)
    for name, grad in step.grad(state, batch).grads.items():
        torch.testing.assert_close(torch.einsum("n,n...->...", share, each.grads[name]), grad, **EXACT)


def test_what_has_no_dimension_belongs_to_each_sample():
    """A scale or a number in the batch is the same for all."""

    def scaled(model, batch):
        return batch["scale"] * batch["power"] * loss(model, {"x": batch["x"], "y": batch["y"]})

    step, extra = make(loss=scaled), {"scale": torch.tensor(3.0, dtype=torch.float64), "power": 2}
    plain = make()
    each = pr.per_sample(step, step.init(seed=0), {**BATCH, **extra}, chunk=4)
    expected = pr.per_sample(plain, plain.init(seed=0), BATCH)

    torch.testing.assert_close(each.grads, {name: 6 * rows for name, rows in expected.grads.items()}, **EXACT)


def test_around_what_stands_around_a_step():
    """Wrappers around `update` are no hindrance, nor is the autocast of one around `grad`."""
    step = pr.wrap(make(), pr.Clip(norm=0.1), pr.Accumulate(2), pr.EMA(0.9))
    state = step.init(seed=0)

    check(pr.per_sample(step, state, BATCH), one_by_one(step, state, BATCH), **EXACT)


def test_a_norm_that_mixes_samples_is_refused():
    """BatchNorm in training mode gives no sample a gradient of its own; GroupNorm and a frozen BatchNorm do."""
    step = make(model=network(nn.BatchNorm1d(5)))
    with pytest.raises(ModelError, match=r"its BatchNorm \['2'\] mixes the samples.*GroupNorm"):
        pr.per_sample(step, step.init(), BATCH)

    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    for layer in (nn.GroupNorm(1, 5), Frozen(5).eval()):
        step = make(model=network(layer))
        state = step.init(seed=0)
        check(pr.per_sample(step, state, BATCH), one_by_one(step, state, BATCH), **EXACT)


def test_what_cannot_be_mapped_is_refused():
    """The other engine, a sweep, a chunk of nothing, a batch with names in it, tensors of other lengths."""
    step = make()
    state = step.init(seed=0)
    sweep = pr.wrap(step, pr.Vmap(2))

    with pytest.raises(pr.StateError, match="a population of 2"):
        pr.per_sample(step, sweep.init(), BATCH)
    for other in (make(engine="autograd"), sweep):
        with pytest.raises(ValueError, match="engine='func'"):
            pr.per_sample(other, state, BATCH)
    with pytest.raises(ValueError, match="expected chunk to be a number of samples"):
        pr.per_sample(step, state, BATCH, chunk=0)
    with pytest.raises(BatchError, match=r"expected a batch of tensors.*\['str'\]"):
        pr.per_sample(step, state, {**BATCH, "name": ["a"] * 7})
    with pytest.raises(BatchError, match="7 samples"):
        pr.per_sample(step, state, {**BATCH, "y": BATCH["y"][:5]})
    with pytest.raises(BatchError, match="a sample at least"):
        pr.per_sample(step, state, {name: tensor[:0] for name, tensor in BATCH.items()})


def test_what_torch_cannot_map_is_said_in_one_line():
    """A decision by what a tensor holds cannot be made for all samples at once."""

    def deciding(model, batch):
        return loss(model, batch) * (2 if batch["x"].sum() > 0 else 1)

    step = make(loss=deciding)
    with pytest.raises(SweepError, match="reads a tensor's value"):
        pr.per_sample(step, step.init(), BATCH)
