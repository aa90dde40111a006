"""Rules of initialisation: torch's own formulas, each parameter under the key of its name, the module untouched."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import init

import purerun as pr
from purerun.checkpoint import Pretrained
from purerun.initial import Caffe2Xavier, Constant, InitialError, Kaiming, Normal, TruncNormal, Uniform, Xavier, begun
from purerun.optim import Kind, Ndim
from purerun.random import Key
from purerun.testing import snapshot

SGD = pr.optim.SGD(lr=0.1, momentum=0.9)
FORMULAS = {
    "constant": (Constant("*", 0.25), lambda w, g: init.constant_(w, 0.25)),
    "normal": (Normal("*", 1.0, 0.5), lambda w, g: init.normal_(w, 1.0, 0.5, generator=g)),
    "truncated": (
        TruncNormal("*", 0.5, 0.2, 0.0, 1.0),
        lambda w, g: init.trunc_normal_(w, 0.5, 0.2, 0.0, 1.0, generator=g),
    ),
    "uniform": (Uniform("*", -1.0, 2.0), lambda w, g: init.uniform_(w, -1.0, 2.0, generator=g)),
    "xavier": (Xavier("*", 2.0), lambda w, g: init.xavier_normal_(w, 2.0, generator=g)),
    "even xavier": (Xavier("*", distribution="uniform"), lambda w, g: init.xavier_uniform_(w, generator=g)),
    "kaiming": (Kaiming("*"), lambda w, g: init.kaiming_normal_(w, 0, "fan_out", "relu", generator=g)),
    "even kaiming": (
        Kaiming("*", 0.3, "fan_in", "leaky_relu", "uniform"),
        lambda w, g: init.kaiming_uniform_(w, 0.3, "fan_in", "leaky_relu", generator=g),
    ),
    "caffe": (Caffe2Xavier("*"), lambda w, g: init.kaiming_uniform_(w, 1, "fan_in", "leaky_relu", generator=g)),
}
MOMENTS = {
    "normal": (Normal("weight", 1.0, 0.5), 1.0, 0.5),
    "truncated": (TruncNormal("weight"), 0.0, 0.8796),  # of the normal distribution between -2 and 2
    "uniform": (Uniform("weight", -1.0, 2.0), 0.5, 3 / math.sqrt(12)),
    "xavier": (Xavier("weight"), 0.0, math.sqrt(2 / (200 + 300))),
    "even xavier": (Xavier("weight", distribution="uniform"), 0.0, math.sqrt(2 / (200 + 300))),
    "kaiming": (Kaiming("weight"), 0.0, math.sqrt(2 / 300)),
    "even kaiming": (Kaiming("weight", mode="fan_in", distribution="uniform"), 0.0, math.sqrt(2 / 200)),
    "caffe": (Caffe2Xavier("weight"), 0.0, math.sqrt(1 / 200)),
}


def make(rules, *more):
    """Make a step of a small convolutional net."""
    torch.manual_seed(7)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), *more)
    return pr.TrainStep(net, lambda model, x: model(x).square().mean(), SGD, init=rules)


@pytest.mark.parametrize(("rule", "formula"), FORMULAS.values(), ids=FORMULAS)
def test_a_rule_is_torch_s_formula(rule, formula):
    """The same bits as `torch.nn.init` with a generator at the key of the seed and the name."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(16, 3, bias=False))
    made = begun([rule], net, seed=5)
    for name, param in net.named_parameters():
        generator = torch.Generator().manual_seed(Key.of(5, "init", name).value)
        expected = formula(torch.empty(param.shape), generator)

        assert torch.equal(expected, made[name]), name


@pytest.mark.parametrize(("rule", "mean", "std"), MOMENTS.values(), ids=MOMENTS)
def test_a_rule_has_the_moments_of_its_formula(rule, mean, std):
    """Of 60000 numbers, to five standard errors."""
    weight = begun([rule], nn.Linear(200, 300), seed=0)["weight"]

    assert abs(weight.mean().item() - mean) < 5 * std / math.sqrt(60000)
    assert abs(weight.std().item() / std - 1) < 0.02


def test_the_state_begins_with_it_and_the_module_does_not_know():
    """Parameters without a rule, and buffers, are the module's own."""
    step = make([Kaiming(nn.Conv2d), Constant(nn.BatchNorm2d, 0.5, bias=0.0)])
    before = snapshot.of_module(step.model, "model")
    state, made = step.init(seed=3), begun(step.init_rules, step.model, seed=3)

    assert before == snapshot.of_module(step.model, "model")
    assert {"0.weight", "0.bias", "1.weight", "1.bias"} == set(made)
    assert all(torch.equal(value, state["params", name]) for name, value in made.items())
    assert torch.equal(step.model[4].weight, state["params", "4.weight"])
    assert [0.5] * 4 == state["params", "1.weight"].tolist()
    assert [0.0] * 4 == state["params", "1.bias"].tolist()
    assert torch.equal(step.model[1].running_var, state["buffers", "1.running_var"])


def test_it_is_a_function_of_the_seed():
    """One seed, one state, whatever global chance; another seed, another one."""
    step = make([Normal("*")])
    first = step.init(seed=1)
    torch.manual_seed(99)

    assert pr.digest(first) == pr.digest(step.init(seed=1))
    assert not torch.equal(first["params", "0.weight"], step.init(seed=2)["params", "0.weight"])


def test_a_layer_more_changes_no_other():
    """Each parameter has the chance of its own name."""
    less, more = make([Normal("*")]).init(seed=1), make([Normal("*")], nn.Linear(3, 3)).init(seed=1)

    assert all(torch.equal(leaf, more["params", name]) for name, leaf in less["params"].items())
    assert not torch.equal(more["params", "4.weight"][:, :3], more["params", "5.weight"])


def test_the_last_rule_counts():
    """A rule for a part stands after the one for the whole."""
    step = make([Normal(Ndim([2, 4]) | Kind("bias"), std=0.1), Constant("4.*", 2.0, bias_prob=0.01)])
    state = step.init()

    assert {2.0} == set(state["params", "4.weight"].flatten().tolist())
    assert pytest.approx([0.01] * 3) == state["params", "4.bias"].sigmoid().tolist()
    assert {0.0} == set(state["params", "0.bias"].tolist())


def test_biases_can_be_left_alone():
    """With `bias=None`."""
    step = make([Normal(nn.Linear, bias=None)])

    assert torch.equal(step.model[4].bias, step.init()["params", "4.bias"])


def test_a_tied_weight_is_drawn_once():
    """Under its first name."""
    layer = nn.Linear(3, 3)
    step = pr.TrainStep(nn.Sequential(layer, layer), lambda m, x: m(x).mean(), SGD, init=Normal("*"))

    assert {"0.weight", "0.bias"} == set(step.init()["params"].keys())


def test_how_a_run_begins_is_no_part_of_how_it_goes_on():
    """A state begun by other rules, or by none, is one of the same step."""
    assert torch.equal(make([]).fingerprint(), make([Normal("*")]).fingerprint())


def test_wrappers_see_what_the_rules_make():
    """An average begins at the fresh weights."""
    state = pr.wrap(make([Normal("*")]), pr.EMA(0.9)).init(seed=4)

    assert torch.equal(state["params", "0.weight"], state["ema", "params", "0.weight"])


def test_members_of_a_sweep_have_weights_of_their_own():
    """Each those of its own seed."""
    step = pr.TrainStep(nn.Linear(2, 3), lambda m, x: m(x).mean(), SGD, init=Normal("*"), engine="func")
    both = pr.unstack(pr.wrap(step, pr.Vmap(2)).init(seed=8))

    assert [pr.digest(step.init(seed)) for seed in (8, 9)] == [pr.digest(member) for member in both]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Normal("fc.*"), r"expected Name\(patterns=\('fc\.\*',\)\) to match a parameter, got none"),
        (Kaiming("1.weight"), r"that Kaiming can fill, got `1\.weight` \[4\]: Fan in and fan out .*; narrow the match"),
    ],
)
def test_a_rule_must_fit(rule, told):
    """The error says which, and what to do."""
    with pytest.raises(InitialError, match=told):
        make([rule]).init()


def test_a_rule_may_match_nothing_if_it_says_so():
    """As rules that serve several models do."""
    assert {} == begun([Normal("fc.*", optional=True)], nn.Linear(1, 1), seed=0)


def test_rules_are_values():
    """Equal rules are equal; what is no rule is refused."""
    assert Normal("a", 0.0, 1.0) == Normal("a")
    with pytest.raises(ValueError, match="`std` should be"):
        Normal("a", std=-1.0)
    with pytest.raises(TypeError, match=r"expected rules such as pr\.initial\.Kaiming"):
        make(["conv*"])


@pytest.fixture
def file(tmp_path):
    """Write weights of a whole detector, whose backbone is a net as above."""
    donor = make([Normal("*", 3.0)]).init(seed=9)
    tensors = {f"backbone.{name}": leaf.clone() for part in ("params", "buffers") for name, leaf in donor[part].items()}
    tensors["backbone.1.running_mean"].fill_(5.0)
    save_file({**tensors, "head.weight": torch.ones(2, 2)}, tmp_path / "detector.safetensors")
    return tmp_path / "detector.safetensors", tensors


def test_weights_of_a_file_come_last(file):
    """Wherever the rule stands; buffers too."""
    path, tensors = file
    state = make([Pretrained(path, prefix="backbone"), Normal("*")]).init()

    for name, value in tensors.items():
        part = "buffers" if "running" in name or "num_" in name else "params"
        assert torch.equal(value, state[part, name.removeprefix("backbone.")]), name


def test_weights_of_a_file_go_into_a_part(file):
    """And only those that are meant."""
    path, tensors = file
    net = nn.ModuleDict({"body": make([]).model, "top": nn.Linear(3, 3)})
    made = begun([Pretrained(path, prefix="backbone", into="body", match="body.0.*")], net, seed=0)

    assert {"body.0.weight", "body.0.bias"} == set(made)
    assert torch.equal(tensors["backbone.0.weight"], made["body.0.weight"])


def test_weights_of_another_model_are_refused(file):
    """Other names, or other shapes."""
    path, _ = file
    with pytest.raises(InitialError, match=r"such as `weight`, got none below prefix='backbone\.9' for into=''"):
        begun([Pretrained(path, prefix="backbone.9")], nn.Linear(1, 1), seed=0)
    with pytest.raises(InitialError, match=r"expected `head\.weight` of shape \[1, 1\] for `weight`, got \[2, 2\]"):
        begun([Pretrained(path, prefix="head")], nn.Linear(1, 1), seed=0)


def test_a_fresh_module_must_be_one_like_the_model():
    """Nothing that is asked of it is passed over in silence."""
    net = nn.Linear(2, 3)
    for rule, said in (
        (pr.initial.Fresh(lambda: nn.Linear(2, 4)), r"`weight` of shape \[3, 2\], as the model, got one of \[4, 2\]"),
        (pr.initial.Fresh(lambda: nn.Linear(2, 3), match="wieght"), "to match a parameter or a buffer, got none"),
    ):
        with pytest.raises(InitialError, match=said):
            pr.initial.begun([rule], net, seed=0)
    assert pr.initial.begun([pr.initial.Fresh(lambda: net, match="wieght", optional=True)], net, seed=0) == {}
    with pytest.raises(ValueError, match=r"expected Fresh to take biases as they are made, got bias=7\.0"):
        pr.initial.Fresh(lambda: net, bias=7.0)


def test_a_fresh_module_is_the_one_that_a_recipe_makes():
    """Buffers included; of the same seed."""
    made = pr.Module(nn.BatchNorm1d, num_features=3)
    key = pr.Key.of(5, "init")
    found = pr.initial.begun([pr.initial.Fresh(made)], made.build(pr.Key.of(0)), seed=5)

    assert found.keys() == dict(made.build(key).state_dict()).keys()
    assert all(torch.equal(found[name], leaf) for name, leaf in made.build(key).state_dict().items())


def test_a_fresh_module_needs_who_makes_it():
    """A function, and one that makes a module."""
    with pytest.raises(TypeError, match="expected Fresh of a function that makes the module, got 3"):
        pr.initial.Fresh(3)
    with pytest.raises(InitialError, match="expected a function that makes a module like the model, got int"):
        pr.initial.begun([pr.initial.Fresh(lambda: 3)], nn.Linear(2, 1), seed=0)
