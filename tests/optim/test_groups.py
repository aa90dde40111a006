"""Groups put each parameter into one bucket, with the factors that the rules give it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from purerun.optim import (
    SGD,
    AdamW,
    Bucket,
    Group,
    GroupError,
    Kind,
    Name,
    Ndim,
    Type,
    Where,
    inspect,
    partition,
    strict,
)


def network():
    return nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
            "body": nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.GroupNorm(2, 8), nn.LayerNorm(8)),
            "words": nn.Embedding(10, 8),
            "memory": nn.LSTM(8, 8),
            "look": nn.MultiheadAttention(8, 2),
            "head": nn.Linear(8, 2),
        }
    )


def names_of(model):
    return [name for name, _ in model.named_parameters()]


def buckets_of(groups, model, names=None):
    return dict(partition(groups, model, names or names_of(model)))


def test_kinds_of_parameters():
    """A parameter is known by what holds it and by its own name."""
    kinds = {name: set(info.kinds) for name, info in inspect(network()).items()}

    assert kinds["stem.0.weight"] == {"conv"}
    assert kinds["stem.1.bias"] == {"norm", "bias"}
    assert kinds["body.0.weight"] == {"conv", "depthwise"}
    assert kinds["body.1.weight"] == {"norm"}
    assert kinds["body.2.bias"] == {"norm", "bias"}
    assert kinds["words.weight"] == {"embedding"}
    assert kinds["memory.bias_ih_l0"] == {"recurrent", "bias"}
    assert kinds["look.in_proj_bias"] == {"attention", "bias"}
    assert kinds["head.weight"] == {"linear"}


def test_parametrized_parameters_belong_to_their_module():
    """What a parametrization holds is of the kind of the module that it is for; a shared one has its first name."""
    model = nn.ModuleDict({"a": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "b": nn.Linear(2, 2)})
    model["c"] = model["b"]
    infos = inspect(model)

    assert {"linear"} == infos["a.parametrizations.weight.original0"].kinds
    assert {"linear", "bias"} == infos["a.bias"].kinds
    assert list(infos) == names_of(model)
    assert "c.weight" not in infos


def test_matches_combine():
    """Matches are predicates that can be joined, and a function is one too."""
    infos = inspect(network())

    def chosen(match):
        return [name for name, info in infos.items() if match(info)]

    def short(info):
        return info.name.startswith("head")

    assert chosen(Kind("bias") & Kind("conv")) == ["stem.0.bias", "body.0.bias"]
    assert chosen(Kind("norm") & ~Kind("bias")) == ["stem.1.weight", "body.1.weight", "body.2.weight"]
    assert chosen(Type(nn.Embedding) | Name("head.*")) == ["words.weight", "head.weight", "head.bias"]
    assert chosen(Where(short)) == ["head.weight", "head.bias"]
    assert chosen(Ndim(4)) == ["stem.0.weight", "body.0.weight"]
    assert chosen(Type([nn.LayerNorm, nn.GroupNorm]) & Kind(["bias"])) == ["body.1.bias", "body.2.bias"]


def test_one_bucket_without_rules():
    """Without groups everything is one bucket without factors."""
    model = network()

    assert partition((), model, names_of(model)) == ((tuple(names_of(model)), {}),)


def test_factors_join_and_the_first_given_wins():
    """Each hyper-parameter takes the first factor given for it; equal factors are one bucket."""
    model = network()
    rules = (
        Group(Kind("norm"), decay_mult=0.0),
        Group("stem.*", lr_mult=0.1),
        Group(["stem.*", "body.*"], lr_mult=0.5, mult={"momentum": 0.9}),
        Group("head.*", lr_mult=1.0),
    )
    found = {tuple(sorted(mult.items())): names for names, mult in partition(rules, model, names_of(model))}

    assert found == {
        (("lr", 0.1), ("momentum", 0.9)): ("stem.0.weight", "stem.0.bias"),
        (("lr", 0.1), ("momentum", 0.9), ("weight_decay", 0.0)): ("stem.1.weight", "stem.1.bias"),
        (("lr", 0.5), ("momentum", 0.9)): ("body.0.weight", "body.0.bias"),
        (("lr", 0.5), ("momentum", 0.9), ("weight_decay", 0.0)): tuple(
            f"body.{place}.{name}" for place in (1, 2) for name in ("weight", "bias")
        ),
        (): tuple(name for name in names_of(model) if name.split(".")[0] in ("words", "memory", "look", "head")),
    }


def test_dtypes_are_buckets_of_their_own():
    """A kernel takes one dtype at a time."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())

    assert [names for names, _ in partition((), model, names_of(model))] == [
        ("0.weight", "0.bias"),
        ("1.weight", "1.bias"),
    ]


def test_only_the_trained_are_shared_out():
    """Names that are not trained are in no bucket, but a rule may be about them."""
    model = network()

    assert buckets_of([Group("stem.*", lr_mult=0.1)], model, ["head.weight"]) == {("head.weight",): {}}


PATTERNS = ["*", "stem.*", "*.bias", "body.0.*", "head.*", "*weight*"]
rules = st.builds(
    Group,
    st.sampled_from(PATTERNS) | st.sampled_from([Kind("norm"), Kind("bias"), Ndim(1), Type(nn.Linear)]),
    lr_mult=st.none() | st.sampled_from([0.0, 0.1, 1.0, 2.0]),
    decay_mult=st.none() | st.sampled_from([0.0, 1.0]),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(rules, max_size=4))
def test_every_parameter_is_in_one_bucket(groups):
    """Each name is in one bucket, buckets differ in their factors, and each factor is the first one given."""
    model, infos = network(), inspect(network())
    buckets = partition(groups, model, names_of(model))

    assert sorted(names_of(model)) == sorted(name for names, _ in buckets for name in names)
    assert len(buckets) == len({tuple(sorted(mult.items())) for _, mult in buckets})
    for names, mult in buckets:
        for name in names:
            for hyper in ("lr", "weight_decay"):
                given_for = [g.factors[hyper] for g in groups if g.match(infos[name]) and hyper in g.factors]
                assert (given_for or [1.0])[0] == mult.get(hyper, 1.0)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (Group("backbone.*", lr_mult=0.1), "expected Name.*backbone.* to match a parameter, got none; .*body"),
        (Group("head.wieght", lr_mult=0.1), "near it: `head.weight`"),
        (Group(Kind("deformable"), lr_mult=0.1), "of the kinds attention, bias, conv"),
        (Group(nn.Conv3d, lr_mult=0.1), "modules that hold parameters are BatchNorm2d, Conv2d"),
        (Group(Ndim(7), lr_mult=0.1), "there are 21 parameters, such as `stem.0.weight`"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error(group, said):
    """The error names the rule, what is near it, and the way out."""
    with pytest.raises(GroupError, match=said) as caught:
        partition([group], network(), names_of(network()))
    assert "optional=True" in str(caught.value)
    assert len(partition([Group(group.match, lr_mult=0.1, optional=True)], network(), names_of(network()))) == 1


def test_strict_rules_name_the_unmatched():
    """In strict groups each parameter has a rule; those without are named."""
    model = network()
    with pytest.raises(GroupError, match=r"got none for `head.weight`, `head.bias`; add a Group"):
        partition(strict(Group(["stem.*", "body.*", "words.*", "memory.*", "look.*"])), model, names_of(model))
    with pytest.raises(GroupError, match="and 11 more"):
        partition(strict(Group("head.*")), model, names_of(model))

    assert len(partition(strict(Group("*")), model, names_of(model))) == 1


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Group(3), TypeError, "expected a glob pattern"),
        (lambda: Group("*", lr_mult="fast"), TypeError, "expected lr_mult of a Group to be a finite number"),
        (lambda: Group("*", lr_mult=float("nan")), TypeError, "finite"),
        (lambda: Group("*", mult={"lr": "fast"}), TypeError, "expected mult of a Group"),
        (lambda: Group(Kind("normal")), ValueError, "expected kinds among attention, .*, got 'normal'"),
        (lambda: SGD(groups=["*"]), TypeError, "expected groups of pr.optim.Group"),
        (lambda: SGD(groups=[Group("*", mult={"beta1": 2.0})]), ValueError, r"which SGD has, got \['beta1'\]"),
    ],
)
def test_what_is_no_rule_is_refused(make, error, said):
    """A wrong match, factor or hyper-parameter is an error when the value is made."""
    with pytest.raises(error, match=said):
        make()


def test_frozen_but_present():
    """A factor of 0 keeps parameters where they are, and their slots alive."""
    model = nn.Linear(2, 2)
    sgd = SGD(lr=0.1, momentum=0.9, groups=[Group("bias", lr_mult=0.0)])
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    slots = sgd.init(params)
    before = {name: param.clone() for name, param in params.items()}
    base = sgd.hyper()
    buckets = [
        Bucket(names, {name: value * mult.get(name, 1.0) for name, value in base.items()})
        for names, mult in partition(sgd.groups, model, list(params))
    ]
    sgd.write(params, {name: torch.ones_like(param) for name, param in params.items()}, slots, buckets)

    assert torch.equal(before["bias"], params["bias"])
    assert not torch.equal(before["weight"], params["weight"])
    assert slots["momentum_buffer"]["bias"].tolist() == [1.0, 1.0]


def test_groups_are_values():
    """Rules compare, hash and print; a list of them in an optimizer becomes a tuple."""
    rule = Group("stem.*", lr_mult=1)

    assert rule == Group(Name("stem.*"), lr_mult=1.0)
    assert hash(rule) == hash(Group(["stem.*"], lr_mult=1.0))
    assert AdamW(groups=[rule]) == AdamW(groups=(rule,))
