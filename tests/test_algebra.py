"""States as vectors: combined where they are of one model, refused where they are not, and never changed."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

import purerun as pr
from purerun import algebra


def loss(model, x):
    """Compute a mean over samples."""
    return model(x).square().mean()


def model():
    """Make a net with buffers."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


STEP = pr.wrap(pr.TrainStep(model(), loss, pr.optim.AdamW(lr=0.01)), pr.EMA(0.9))


def trained(seed, iters=3):
    """Make a state of that step, trained on data of its own."""
    state, generator = STEP.init(seed), torch.Generator().manual_seed(seed)
    for _ in range(iters):
        state = STEP(state, torch.randn(8, 3, generator=generator, dtype=torch.float64))
    return state


STATES = [trained(seed) for seed in range(4)]


def weights(state):
    """List what a model's `state_dict` holds."""
    return {**state["params"], **state["buffers"]}


@given(st.floats(-1, 2))
def test_between_two_states(weight):
    """By the formula, for weights in floating point; counts are the first one's, and so is all else."""
    a, b = STATES[:2]
    mixed = algebra.interpolate(a, b, weight)

    for name, leaf in weights(mixed).items():
        one, other = weights(a)[name], weights(b)[name]
        expected = (1 - weight) * one + weight * other if one.is_floating_point() else one
        assert torch.allclose(expected, leaf, rtol=1e-10, atol=1e-12), name
    assert pr.digest(a.exclude("params", "buffers")) == pr.digest(mixed.exclude("params", "buffers"))


def test_its_ends_are_the_two():
    """To the last bit."""
    a, b = STATES[:2]

    assert pr.digest(a) == pr.digest(algebra.interpolate(a, b, 0.0))
    assert all(torch.equal(leaf, weights(b)[name]) for name, leaf in weights(algebra.interpolate(a, b, 1.0)).items())


def test_a_soup_is_torch_s_average():
    """The mean of four states is what an averaged model of torch makes of them."""
    net = model()
    averaged = AveragedModel(net, use_buffers=True)
    for state in STATES:
        net.load_state_dict(dict(weights(state)))
        averaged.update_parameters(net)

    soup = weights(algebra.average(*STATES))
    for name, leaf in averaged.module.state_dict().items():
        if leaf.is_floating_point():
            assert torch.allclose(leaf, soup[name], rtol=1e-10, atol=1e-12), name


@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_a_weighted_soup(parts):
    """By the formula; weights count relative to each other."""
    soup = weights(algebra.average(*STATES, weights=parts))
    for name, leaf in soup.items():
        if leaf.is_floating_point():
            each = [part * weights(state)[name] for part, state in zip(parts, STATES, strict=True)]
            assert torch.allclose(sum(each) / sum(parts), leaf, rtol=1e-9, atol=1e-12), name


def test_a_soup_of_half_precision_rounds_once():
    """Many small additions to a large number would be lost."""
    state = pr.testing.counted(params={"w": torch.full((1,), 256.0, dtype=torch.bfloat16)}, buffers={})
    more = state.replace(params={"w": torch.full((1,), 258.0, dtype=torch.bfloat16)})

    assert 258.0 == algebra.average(state, *[more] * 7)["params", "w"].item()


def test_grafted_weights_are_the_donor_s():
    """Those that match, and no others."""
    a, b = STATES[:2]
    grafted = algebra.graft(a, b, "0.*", "1.running_*")

    for name, leaf in weights(grafted).items():
        donor = name.startswith(("0.", "1.running_"))
        assert torch.equal(weights(b if donor else a)[name], leaf), name


def test_a_graft_into_another_model():
    """Only what is taken must be alike."""
    wide = pr.TrainStep(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 7)).double(), loss, pr.optim.SGD()).init()

    assert torch.equal(STATES[0]["params", "0.weight"], algebra.graft(wide, STATES[0], "0.*")["params", "0.weight"])
    donor = pr.TrainStep(nn.Sequential(nn.Linear(5, 4)).double(), loss, pr.optim.SGD()).init()
    with pytest.raises(pr.StateError, match=r"alike at `params/0.weight`, got torch.float64 \[4, 3\] and .* \[4, 5\]"):
        algebra.graft(wide, donor, "0.*")


def test_renamed_weights_are_renamed_everywhere():
    """A model that calls its layers otherwise goes on to the same weights, slots and average included."""
    other = nn.Sequential()
    for name, layer in zip(["stem", "norm", "head"], copy.deepcopy(list(STEP.step.model)), strict=True):
        other.add_module(name, layer)
    theirs = pr.wrap(pr.TrainStep(other, loss, pr.optim.AdamW(lr=0.01)), pr.EMA(0.9))
    names = {"0.": "stem.", "1.": "norm.", "2.weight": "head.weight", "2.bias": "head.bias"}
    x = torch.ones(8, 3, dtype=torch.float64) * torch.arange(8).unsqueeze(1)
    renamed = algebra.rename(STATES[0], names).replace(fingerprint=theirs.fingerprint())
    here, there = STEP(STATES[0], x), theirs(renamed, x)

    assert pr.digest(algebra.rename(here, names)) == pr.digest(there)


def test_there_and_back():
    """Renaming back gives the state."""
    away = algebra.rename(STATES[0], {"0.": "a.", "1.": "b."})

    assert pr.digest(STATES[0]) != pr.digest(away)
    assert pr.digest(STATES[0]) == pr.digest(algebra.rename(away, {"a.": "0.", "b.": "1."}))


def test_names_of_other_things_stay():
    """A weight called as a hyper-parameter or a slot is: only what is kept by weight is renamed."""
    state = pr.testing.counted(params={"lr": torch.zeros(1)}, hyper={"lr": torch.tensor(0.1)})
    renamed = algebra.rename(state, {"lr": "rate"})

    assert ["rate"] == list(renamed["params"].names())
    assert ["lr"] == list(renamed["hyper"].names())


def test_the_way_between_two_states_has_a_derivative():
    """By how far it is gone; numbers may be tensors."""
    step = pr.TrainStep(nn.Linear(2, 1), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1), engine="func")
    one, x = step.init(), torch.ones(4, 2)
    two = step(step(one, x), x)

    def at(weight):
        return pr.loss_at(step, algebra.interpolate(one, two, weight), x)

    slope = torch.func.grad(at)(torch.tensor(0.5))
    assert float(slope) == pytest.approx(float(at(0.501) - at(0.499)) / 0.002, rel=1e-2)
    for weight in ("0.5", torch.ones(2), None):
        with pytest.raises(ValueError, match="a finite number to interpolate by"):
            algebra.interpolate(one, two, weight)


class Odd(nn.Module):
    """A model whose parameters are called as what wrappers and optimizers keep."""

    NAMES = ("weight", "count", "scale", "step", "total", "rest", "parts", "row")

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.own = nn.ParameterDict({f"{prefix}{name}": torch.ones(3) for name in self.NAMES})
        for name in self.NAMES:  # at the root, where names have no dots
            self.register_parameter(f"{prefix}{name}", nn.Parameter(torch.ones(3)))

    def forward(self, x):
        return sum((param * x).square().mean() for param in self.parameters())


_SPLIT = pr.optim.split(scale=("*scale", pr.optim.AdamW(lr=0.1)), rest=pr.optim.Adam(lr=0.1))


@pytest.mark.parametrize(
    ("optimizer", "wrappers"),
    [
        (_SPLIT, ()),
        (pr.optim.SGD(lr=0.1, momentum=0.9), (pr.Accumulate(2),)),
        (pr.optim.SGD(lr=0.1, momentum=0.9), (pr.EMA(0.9), pr.SkipNonFinite())),
        (pr.optim.Adam(lr=0.1), (pr.Precision("float16"), pr.Accumulate(2))),
        (pr.optim.Adam(lr=0.1), (pr.Microbatch(2, on_oom="halve"), pr.SWA())),
    ],
    ids=["split", "window", "average", "scale", "parts"],
)
def test_a_renamed_state_goes_on_as_the_renamed_model_does(optimizer, wrappers):
    """Only what is kept by weight is renamed, whatever weights are called."""

    def make(prefix):
        step = pr.TrainStep(Odd(prefix), lambda model, x: model(x), optimizer)
        return pr.wrap(step, *wrappers)

    names = {name: f"new_{name}" for name in Odd.NAMES} | {f"own.{name}": f"own.new_{name}" for name in Odd.NAMES}
    old, new = make(""), make("new_")
    x = torch.linspace(-1, 1, 12).view(4, 3)
    state = old(old.init(), x)
    renamed = algebra.rename(state, names)
    later = new(new(new.adopt(renamed), x), x)

    assert pr.digest(later) == pr.digest(new.adopt(algebra.rename(old(old(state, x), x), names)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: algebra.interpolate(STATES[0], pr.testing.counted(params={}, buffers={}), 0.5), "is in one of them"),
        (lambda: algebra.average(STATES[0], STATES[1].replace(params={"more": torch.zeros(1)})), "`params/more` is in"),
        (lambda: algebra.average([STATES[0], STATES[1]]), "each as an argument of its own, got list"),
        (lambda: algebra.graft(STATES[0], STATES[1], "stem.*"), "expected 'stem.*' to match a weight of the donor"),
        (lambda: algebra.rename(STATES[0], {"stem.": "a."}), "names of weights among"),
        (lambda: algebra.rename(STATES[0], {"0.weight": "2.weight"}), "several would be `2.weight`"),
        (lambda: algebra.freeze(STATES[0], "head"), "expected shares among [], got ['head']"),
    ],
    ids=["names", "more", "a list", "pattern", "old name", "new name", "share"],
)
def test_what_does_not_fit_is_refused(make, said):
    """With what was expected and what came."""
    with pytest.raises(pr.StateError, match=re.escape(said)):
        make()


@pytest.mark.parametrize("parts", [[1.0], [1.0, -1.0]], ids=["too few", "a sum of nothing"])
def test_a_soup_needs_a_weight_for_each(parts):
    """And a sum to divide by."""
    with pytest.raises(ValueError, match="a weight for each of 2 states"):
        algebra.average(*STATES[:2], weights=parts)


def test_a_soup_of_nothing_is_refused():
    """There is nothing to name a shape by."""
    with pytest.raises(ValueError, match="expected states to average"):
        algebra.average()


def test_no_state_is_changed():
    """Nor can what is written into a result reach its sources."""
    before = [pr.digest(state) for state in STATES]
    results = [algebra.interpolate(*STATES[:2], 0.5), algebra.average(*STATES), algebra.graft(*STATES[:2], "0.*")]
    for state in [*results, algebra.rename(STATES[0], {"0.": "a."})]:
        for _, leaf in pr.state.leaves(state):
            leaf.zero_()

    assert before == [pr.digest(state) for state in STATES]


def test_frozen_shares_stay_until_they_are_thawed():
    """Parameters and slots."""
    optimizer = pr.optim.split(body=("0.*", pr.optim.AdamW(lr=0.1)), rest=pr.optim.AdamW(lr=0.1))
    step = pr.TrainStep(model(), loss, optimizer)
    x = torch.randn(8, 3, dtype=torch.float64)
    start = algebra.freeze(step(step.init(), x), "body")
    frozen = step(step(start, x), x)
    free = step(algebra.thaw(frozen, "body"), x)

    assert pr.digest(start.select("optim")["optim", "body"]) == pr.digest(frozen["optim", "body"])
    assert torch.equal(start["params", "0.weight"], frozen["params", "0.weight"])
    assert not torch.equal(start["params", "2.weight"], frozen["params", "2.weight"])
    assert not torch.equal(free["params", "0.weight"], frozen["params", "0.weight"])
