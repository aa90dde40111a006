"""Microbatches: a batch read in parts is the batch, and bit for bit what a hand-written loop makes of it."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun.grad import LossError
from purerun.random import keyed
from purerun.testing.snapshot import of_state
from purerun.wrappers import Wrapper

DOUBLE = torch.float64


def squared(model, x):
    """Compute a mean over samples."""
    return model(x).square().mean()


def tokens(model, x):
    """Compute a loss with a weight of its own, a tensor: so many rows of it are positive."""
    mask = x[:, 0] > 0
    return pr.Loss(((model(x)[:, 0] ** 2) * mask).sum(), weight=mask.sum())


def net(*layers):
    """Make a small model in double precision."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), *layers, nn.Linear(3, 1)).double()


def make(loss=squared, model=None, optimizer=None, **options):
    """Make a step."""
    return pr.TrainStep(model or net(nn.Tanh()), loss, optimizer or pr.optim.SGD(lr=0.1, momentum=0.9), **options)


def normal(*shape, seed=0):
    """Draw numbers."""
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def close(first, second, part="params"):
    """Say whether two states agree, to rounding."""
    return all(
        torch.allclose(leaf, second[part][name], rtol=1e-10, atol=1e-12, equal_nan=True)
        for name, leaf in first[part].items()
    )


@pytest.mark.parametrize("engine", ["autograd", "func"])
@pytest.mark.parametrize("loss", [squared, tokens], ids=["mean", "own weight"])
@given(samples=st.integers(1, 9), count=st.integers(1, 10), seed=st.integers(0, 5))
def test_the_parts_are_the_batch(engine, loss, samples, count, seed):
    """Uneven parts, fewer samples than parts, parts of padding alone."""
    x = normal(samples, 2, seed=seed)
    plain, step = make(loss, engine=engine), pr.wrap(make(loss, engine=engine), pr.Microbatch(count))

    expected, actual = plain(plain.init(), x), step(step.init(), x)

    assert close(expected, actual)
    assert close(expected, actual, "metrics")


def test_it_is_a_hand_written_loop_bit_for_bit():
    """With BatchNorm's buffers threading through, dropout by part, and uneven weights."""
    model = net(nn.BatchNorm1d(3), nn.Dropout(0.5))
    step = pr.wrap(make(model=model), pr.Microbatch(3))
    hand, x = copy.deepcopy(model), normal(8, 2)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9, fused=True)
    state = step.init(seed=5)
    for count in range(4):
        state = step(state, x)
        sums = None
        for place, part in enumerate(x.tensor_split(3)):
            with keyed(pr.Key.of(5, "step", count, place)):
                grads = torch.autograd.grad(squared(hand, part), [*hand.parameters()])
            if sums is None:
                sums = torch._foreach_mul(grads, len(part))
            else:
                torch._foreach_add_(sums, grads, alpha=len(part))
        for param, total in zip(hand.parameters(), sums, strict=True):
            param.grad = total / 8
        optimizer.step()

        assert all(torch.equal(value, state["params", name]) for name, value in hand.named_parameters())
        assert all(torch.equal(value, state["buffers", name]) for name, value in hand.named_buffers())


def test_a_batch_that_is_not_cut_is_read_as_it_is():
    """One part: the digest of the step without the wrapper, chance and all; an empty batch too."""
    x = normal(5, 2)
    plain = make(model=net(nn.Dropout(0.5)))
    one = pr.wrap(plain, pr.Microbatch(1))

    assert pr.digest(plain(plain.init(1), x)) == pr.digest(one(one.init(1), x))

    summed = make(lambda model, x: model(x).square().sum())
    many = pr.wrap(summed, pr.Microbatch(4))

    assert pr.digest(summed(summed.init(), x[:0])) == pr.digest(many(many.init(), x[:0]))


def test_each_term_merges_as_it_says():
    """Means by weight, sums, extremes, the last one; the loss is the mean."""

    def loss(model, x):
        terms = {how: pr.Term(x.sum(), how) for how in ("mean", "sum", "max", "min", "last")}
        return {"loss": model(x).square().mean(), "bare": x.mean(), "count": pr.Term(len(x), "sum"), **terms}

    step, x = pr.wrap(make(loss), pr.Microbatch(2)), torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 6.0]], dtype=DOUBLE)
    told = step(step.init(), x)["metrics"]

    expected = {"mean": (2 * 10 + 1 * 1) / 3, "sum": 11.0, "max": 10.0, "min": 1.0, "last": 1.0}
    assert expected == {how: pytest.approx(told[how].item()) for how in expected}
    assert pytest.approx(11 / 6) == told["bare"].item()
    assert (3, torch.int64) == (told["count"].item(), told["count"].dtype)


def test_parts_that_report_other_terms_are_refused():
    """A term that comes and goes has no mean."""

    def loss(model, x):
        return {"loss": model(x).square().mean(), **({"big": x.sum()} if x.sum() > 0 else {})}

    step = pr.wrap(make(loss), pr.Microbatch(2))
    with pytest.raises(LossError, match=r"the same terms of each part.*'big'"):
        step(step.init(), torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=DOUBLE))


def test_short_gradients_are_summed_in_float32():
    """256 parts of bfloat16: a sum of 16 bits would stand still at 256."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    step = pr.wrap(
        pr.TrainStep(model, lambda model, x: model(x).float().mean(), pr.optim.SGD(lr=1.0)), pr.Microbatch(300)
    )
    grads = step.grad(step.init(), torch.ones(300, 1, dtype=torch.bfloat16))

    assert (1.0, torch.bfloat16) == (grads.grads["weight"].item(), grads.grads["weight"].dtype)


def test_a_line_search_looks_at_the_whole_batch():
    """LBFGS over parts is LBFGS over the batch."""
    x = normal(7, 2)
    optimizer = pr.optim.Torch(torch.optim.LBFGS, lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    plain = make(optimizer=optimizer)
    step = pr.wrap(plain, pr.Microbatch(3))
    expected, actual = plain.init(), step.init()
    for _ in range(2):
        expected, actual = plain(expected, x), step(actual, x)

    assert not close(plain.init(), actual)
    assert close(expected, actual)


@attrs.frozen
class Counting(Wrapper):
    """Note the part of each pass."""

    parts: list = attrs.field(factory=list)

    def read(self, step, draft, batch, how):
        self.parts.append((how.part, len(batch)))
        return step.read(draft, batch, how)


@pytest.mark.parametrize("engine", ["autograd", "func"])
def test_buffers_go_through_the_parts(engine):
    """Running statistics are those of torch's own layer that sees one part after the other."""
    model, x = net(nn.BatchNorm1d(3)), normal(9, 2)
    step = pr.wrap(make(model=model, engine=engine), pr.Microbatch(3))
    after = step(step.init(), x)
    for part in x.tensor_split(3):
        model(part)

    for name, buffer in model.named_buffers():
        assert torch.allclose(buffer, after["buffers", name], rtol=1e-12), name
    assert 3 == int(after["buffers", "1.num_batches_tracked"])


def test_it_goes_with_windows():
    """Three batches in two parts each: one update, that of the big batch."""
    x = normal(9, 2)
    plain, step = make(), pr.wrap(make(), pr.Microbatch(2), pr.Accumulate(3), pr.EMA(0.5))
    state = step.init()
    for part in x.split([4, 3, 2]):
        state = step(state, part)

    assert close(plain(plain.init(), x), state)


def test_the_two_doors_are_one():
    """A call is update after grad."""
    step, x = pr.wrap(make(model=net(nn.BatchNorm1d(3))), pr.Microbatch(2, on_oom="halve")), normal(6, 2)
    state = step.init()

    assert of_state(step(state, x)) == of_state(step.update(state, step.grad(state, x)))


@pytest.mark.parametrize(("wrong", "words"), [({"count": 0}, "`count` should"), ({"on_oom": "skip"}, "on_oom")])
def test_what_makes_no_sense_is_refused(wrong, words):
    """When it is made."""
    with pytest.raises(ValueError, match=words):
        pr.Microbatch(**wrong)


def test_shards_are_cut_in_parts():
    """Each shard in parts is the batch."""
    x = normal(9, 2)
    plain, step = make(), pr.wrap(make(), pr.Microbatch(2, on_oom="halve"), pr.DataParallel(2))
    after = step(step.init(), x)

    assert close(plain(plain.init(), x), after)
    assert 2 == int(after["metrics", "microbatches"]) == int(after["microbatch", "parts"])


@pytest.mark.parametrize("wrapper", [pr.Microbatch(2), pr.Microbatch(1, on_oom="halve")], ids=["cut", "halve"])
@pytest.mark.filterwarnings("ignore::purerun.wrappers.vmap.SameMembers")
def test_it_stands_around_a_mapped_program(wrapper):
    """The batches of all members are cut alike."""
    plain, x = make(engine="func"), normal(4, 2)
    outside = pr.wrap(plain, pr.Vmap(3), wrapper)
    after, expected = outside(outside.init(), x)["params", "0.weight"], plain(plain.init(), x)["params", "0.weight"]
    assert torch.allclose(expected.expand_as(after), after, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrapper", [pr.Microbatch(4), pr.DataParallel(4)], ids=["parts", "shards"])
@pytest.mark.parametrize(
    ("dtype", "told"), [(torch.uint8, torch.int64), (torch.int32, torch.int64), (torch.bool, torch.int64)]
)
def test_a_sum_of_short_whole_numbers_is_a_long_one(wrapper, dtype, told):
    """It would not fit."""
    each = 1 if dtype == torch.bool else 100

    def loss(model, x):
        return {"loss": model(x).mean(), "seen": pr.Term(torch.tensor(each, dtype=dtype), "sum")}

    step = pr.wrap(pr.TrainStep(nn.Linear(2, 1), loss, pr.optim.SGD(lr=0.1)), wrapper)
    seen = step(step.init(), torch.ones(8, 2))["metrics", "seen"]

    assert (4 * each, told) == (seen.item(), seen.dtype)
