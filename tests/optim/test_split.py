"""Several optimizers as one move each parameter as its own optimizer does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.optim import (
    SGD,
    Adagrad,
    AdamW,
    Bucket,
    Group,
    GroupError,
    Kind,
    Name,
    Ndim,
    Split,
    Torch,
    partition,
    split,
    strict,
)


def start():
    return {"body.weight": torch.ones(3, 2), "body.bias": torch.ones(2), "head.weight": torch.ones(2, 2)}


def grads_of(params, turn):
    return {name: (param + turn).sin() for name, param in params.items()}


def test_each_moves_its_own():
    """Muon on the matrices and AdamW on the rest: each the bits of its own run, slots under its name."""
    muon, adamw = Torch(torch.optim.Muon, lr=0.05), AdamW(lr=0.05)
    both, params = split(matrices=(Ndim(2) & ~Name("head.*"), muon), rest=adamw), start()
    slots = both.init(params)
    alone = {"body.weight": (muon, start()), "body.bias": (adamw, start()), "head.weight": (adamw, start())}
    alone = {name: (optimizer, {name: one[name]}) for name, (optimizer, one) in alone.items()}
    kept = {name: optimizer.init(one) for name, (optimizer, one) in alone.items()}
    for turn in range(5):
        for name, (optimizer, one) in alone.items():
            moved, kept[name] = optimizer.update(one, grads_of(one, turn), kept[name])
            alone[name] = (optimizer, moved)
        params, slots = both.update(params, grads_of(params, turn), slots)

        assert all(torch.equal(alone[name][1][name], params[name]) for name in params)
    assert set(slots) == {"matrices", "rest"}
    assert set(slots["rest"]["exp_avg"]) == {"body.bias", "head.weight"}
    assert "rest.lr" in both.hyper()


def test_hyper_parameters_stand_behind_their_share():
    """Each share has hyper-parameters of its own."""
    both, params = split(a=("body.*", SGD(lr=0.1)), b=SGD(lr=0.2)), start()
    grads = {name: torch.ones_like(param) for name, param in params.items()}
    moved, slots = both.update(params, grads, both.init(params), {"b.lr": 0.5})

    assert slots == {}
    assert {name: pytest.approx(float(param.mean())) for name, param in moved.items()} == {
        "body.weight": 0.9,
        "body.bias": 0.9,
        "head.weight": 0.5,
    }


def test_groups_are_about_their_own_share():
    """Groups of a share change its parameters and its hyper-parameters, and no others."""
    model = nn.ModuleDict({"body": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "head": nn.Linear(3, 1)})
    names = [name for name, _ in model.named_parameters()]
    both = split(
        body=(["body.*", "norm.*"], SGD(lr=0.1, groups=[Group(Kind("norm"), decay_mult=0.0)])),
        rest=AdamW(groups=[Group(Kind("bias"), lr_mult=2.0)]),
    )

    assert dict(partition(both.groups, model, names)) == {
        ("body.weight", "body.bias", "head.weight"): {},
        ("norm.weight", "norm.bias"): {"body.weight_decay": 0.0},
        ("head.bias",): {"rest.lr": 2.0},
    }
    with pytest.raises(GroupError, match="to match a parameter"):
        partition(split(a=("body.*", SGD(groups=[Group("head.*", lr_mult=2.0)])), b=SGD()).groups, model, names)
    with pytest.raises(GroupError, match=r"got none for `body\.bias`; add"):
        rules = strict(Group("*.weight"))
        partition(split(a=("body.*", SGD(groups=rules)), b=SGD()).groups, model, names)


def test_buckets_are_dealt_out():
    """Buckets that several shares have parameters in are cut."""
    both, params = split(a=("body.*", SGD(lr=0.1)), b=Adagrad(lr=0.1)), start()
    grads, slots, hyper = grads_of(params, 0), both.init(params), both.hyper()
    expected, _ = both.update(params, grads, slots)
    buckets = [Bucket(("head.weight", "body.weight"), hyper), Bucket(("body.bias",), hyper)]
    moved, _ = both.trace(params, grads, both.init(params), buckets)
    params = {name: param.clone() for name, param in params.items()}
    both.write(params, grads, slots, buckets)

    assert all(torch.equal(expected[name], params[name]) for name in params)
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: split(a=(Kind("norm"), SGD()), b=SGD()), TypeError, "by name or shape"),
        (lambda: split(a=(~Kind("norm") & Name("*"), SGD())), TypeError, "a state knows no modules, got Both"),
        (lambda: split(a=Torch(torch.optim.LBFGS)), TypeError, "that need no closure"),
        (lambda: split(a=("b.*", SGD())).init(start()), ValueError, "expected a share for `body.weight`"),
        (lambda: split(a=("b.*", SGD()), b=SGD()).init(start()), ValueError, r"for each share, got none for \['a'\]"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(make, error, said):
    """Shares are found by name or shape; each has parameters, and each parameter a share."""
    with pytest.raises(error, match=said):
        make()


def test_is_a_value():
    """It compares by its shares in their order."""
    a, b = SGD(), AdamW()

    assert split(x=("w*", a), y=b) == Split({"x": ("w*", a), "y": b})
    assert split(x=("w*", a), y=b) != split(y=b, x=("w*", a))
    assert hash(split(x=("w*", a), y=b)) == hash(split(x=("w*", a), y=b))


FROZEN = pr.schedule.Freeze(begin=2, end=4, by="iter", param="body.active")


@pytest.mark.parametrize("engine", ["autograd", "func"])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9), AdamW(lr=0.1)], ids=["sgd", "adamw"])
def test_a_frozen_share_is_as_if_it_were_not_there(engine, optimizer):
    """Frozen for two iterations of seven: it ends where an optimizer ends that was called for the other five."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    both = split(body=("0.*", optimizer), rest=optimizer)
    step = pr.TrainStep(model, lambda m, x: m(x).square().mean(), both, schedule=FROZEN, engine=engine)
    kinds = {SGD: (torch.optim.SGD, {"momentum": 0.9}), AdamW: (torch.optim.AdamW, {"weight_decay": 0.01})}
    make, options = kinds[type(optimizer)]
    twin = copy.deepcopy(model)
    body, rest = (make(part.parameters(), lr=0.1, **options) for part in (twin[0], twin[2]))
    state = step.init()
    for turn in range(7):
        state = step(state, x)
        twin.zero_grad()
        twin(x).square().mean().backward()
        rest.step()
        if turn not in (2, 3):
            body.step()

        assert float(turn not in (2, 3)) == state["metrics", "body.active"].item()
        for name, param in twin.named_parameters():
            assert torch.allclose(param, state["params", name], rtol=1e-9, atol=1e-11), (turn, name)


def test_a_share_may_be_frozen_several_times():
    """The windows of several schedules."""
    schedule = [FROZEN, pr.schedule.Freeze(begin=6, by="iter", param="body.active")]
    plan = pr.schedule.Plan(tuple(schedule))

    assert [1, 1, 0, 0, 1, 1, 0, 0] == [plan(0, iter)["body.active"].scale for iter in range(8)]
