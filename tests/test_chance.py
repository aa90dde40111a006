"""Chance of many members at once: each draws what it would draw alone, whatever it draws with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from purerun.chance import ChanceError, Streams, draws
from purerun.mapping import SweepError, mapped
from purerun.random import Key, keyed

SHARED = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
"""What all members are given: a draw by its shape must differ between them all the same."""
DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.4),
    "dropout of what is shared": lambda x: x * F.dropout(SHARED, 0.4),
    "dropout in place": lambda x: F.dropout(x.clone(), 0.4, inplace=True),
    "dropout of nothing": lambda x: F.dropout(F.dropout(x, 0.0), 0.4),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.4, training=True),
    "feature dropout": lambda x: F.dropout1d(x, 0.4),
    "rand": lambda x: x + torch.rand(2, 3, 4),
    "randn": lambda x: x + torch.randn(4),
    "rand_like": lambda x: x + torch.rand_like(x) * torch.randn_like(SHARED),
    "randint": lambda x: x * torch.randint(5, (3, 1)),
    "bernoulli": lambda x: x * torch.bernoulli(torch.sigmoid(x)),
    "normal": lambda x: torch.normal(x, 2.0) + torch.normal(0.0, 1.0, (4,)),
    "gumbel softmax": F.gumbel_softmax,
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.4),
}


def keys(seed: int = 0) -> list[Key]:
    """Make a key for each of three members."""
    return [Key.of(seed, place) for place in range(3)]


def transposed(x):
    """Draw into memory that is not row by row; outside of a gradient, torch's dropout takes its order from that."""
    return F.dropout(x.transpose(1, 2), 0.4).transpose(1, 2)


@pytest.mark.parametrize(
    ("draw", "differentiated"),
    [*((draw, True) for draw in (*DRAWS.values(), transposed)), *((draw, False) for draw in DRAWS.values())],
    ids=[*(f"{name}, differentiated" for name in (*DRAWS, "transposed")), *DRAWS],
)
def test_each_member_draws_what_it_draws_alone(draw, differentiated):
    """Bit for bit, a second draw included, inside of a gradient too."""
    twice = lambda x: draw(draw(x)).square().sum()  # noqa: E731
    run = torch.func.grad(twice) if differentiated else twice
    x = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    with Streams(keys()):
        found = mapped(run, x)
    expected = []
    for key, own in zip(keys(), x, strict=True):
        with keyed(key):
            expected.append(run(own))

    assert torch.equal(torch.stack(expected), found)


@given(seed=st.integers(0, 2**31), names=st.lists(st.sampled_from(sorted(DRAWS)), min_size=1, max_size=4))
def test_streams_go_on_from_draw_to_draw(seed, names):
    """Whatever is drawn after whatever."""

    def run(x):
        for name in names:
            x = DRAWS[name](x)
        return x

    x = SHARED.expand(3, 2, 3, 4).clone()
    with Streams(keys(seed)):
        found = mapped(run, x)
    for place, key in enumerate(keys(seed)):
        with keyed(key):
            assert torch.equal(run(x[place]), found[place])


def test_the_global_generator_stays_where_it_was():
    """Nothing outside can tell that members have drawn."""
    before = torch.get_rng_state()
    with Streams(keys()):
        mapped(lambda x: x + torch.rand(2), torch.zeros(3, 2))

    assert torch.equal(before, torch.get_rng_state())


REFUSED = {
    "randperm": (lambda x: x[torch.randperm(2)], ChanceError, "got aten.randperm.default, which cannot"),
    "generator": (lambda x: x + torch.rand(2, generator=torch.Generator()), ChanceError, "one of its own"),
    "in place": (lambda x: x + torch.empty(2).uniform_(), SweepError, "a draw into a tensor that all members share"),
}


@pytest.mark.parametrize(("draw", "kind", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_taken_apart_is_refused(draw, kind, said):
    """In one line, and never drawn alike for all."""
    with Streams(keys()), pytest.raises(kind, match=said):
        mapped(draw, torch.zeros(3, 2))


def test_a_draw_is_noticed():
    """By the generator that it moves."""
    cpu = torch.device("cpu")

    assert [False, True] == [draws(cpu, run)[1] for run in (lambda: torch.zeros(1), lambda: torch.rand(1))]
