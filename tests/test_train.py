"""The training step: what it moves, by which rates, and by which of two engines."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.bind import ModelError
from purerun.state import StateError, seal, unseal
from purerun.testing import MODELS
from purerun.testing.optimizers import OPTIMIZERS

X = torch.arange(24.0).reshape(12, 2).sin()
TRACED = {name: row.optimizer for name, row in OPTIMIZERS.items() if row.traced}


def squared(model, batch):
    """Compute a loss."""
    return model(batch).square().mean()


def network(dtype=torch.float32):
    """Make a small module."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)


def make(loss=squared, optimizer=pr.optim.SGD(lr=0.1, momentum=0.9), *, model=None, **options):  # noqa: B008
    """Make a step."""
    return pr.TrainStep(model or network(), loss, optimizer, **options)


class TestWhatMoves:
    """Which parameters are trained."""

    @pytest.mark.parametrize(
        ("params", "expected"),
        [
            ("*", {"0.weight", "0.bias", "2.weight", "2.bias"}),
            ("0.*", {"0.weight", "0.bias"}),
            ("*.bias", {"0.bias", "2.bias"}),
            (("0.weight", "2.*"), {"0.weight", "2.weight", "2.bias"}),
        ],
        ids=["all", "a part", "a kind", "several"],
    )
    def test_patterns_choose(self, params, expected):
        """The others stay as they are, and have no slots."""
        step = make(params=params)
        state = step.init()
        after = step(state, X)
        moved = {name for name, leaf in state["params"].items() if not torch.equal(leaf, after["params", name])}

        assert expected == moved == set(step.trained) == set(state["optim", "momentum_buffer"].names())

    def test_frozen_parameters_stay(self):
        """Whatever the pattern; they are in the state all the same."""
        model = network()
        model[0].requires_grad_(requires_grad=False)
        step = make(model=model)
        state = step.init()
        after = step(state, X)

        assert ("2.weight", "2.bias") == step.trained
        assert torch.equal(state["params", "0.weight"], after["params", "0.weight"])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"params": "x*"}, "match 'x\\*', got none among \\['0.weight'"),
            ({"model": nn.Tanh()}, "no free parameter"),
            ({"model": network().requires_grad_(requires_grad=False)}, "requires_grad_\\(True\\)"),
        ],
        ids=["pattern", "no parameters", "all frozen"],
    )
    def test_nothing_to_train_is_refused(self, options, words):
        """When the step is made."""
        with pytest.raises(ModelError, match=words):
            make(**options)

    def test_tied_weights_are_one_parameter(self):
        """Both places see every update."""
        case = next(case for case in MODELS if case.name == "tied embedding")
        step = pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.5))
        state = step(step.init(), case.data())

        assert ("embed.weight",) == step.trained == state["params"].names()
        assert not torch.equal(case.module().embed.weight, state["params", "embed.weight"])


class TestRates:
    """Hyper-parameters: leaves of the state, under schedules and groups."""

    def test_schedules_act_on_the_base_value(self):
        """Of several hyper-parameters, by iteration and by epoch; the report says what was used."""
        schedule = [
            pr.schedule.MultiStep([1], gamma=0.1, by="epoch"),
            pr.schedule.Linear(0.5, end=3, by="iter", param="momentum"),
        ]
        step = make(schedule=schedule)
        states = list(pr.TrainLoop(step, epochs=2)(step.init().replace(hyper={"lr": 2.0}), [X[:6], X[6:]]))

        assert [2.0, 2.0, 0.2, 0.2] == pytest.approx([state["metrics", "lr"].item() for state in states])
        assert [0.45, 0.675, 0.9, 0.9] == pytest.approx([state["metrics", "momentum"].item() for state in states])
        assert {2.0} == {state["hyper", "lr"].item() for state in states}

    def test_groups_multiply(self):
        """A rule gives some parameters a multiple of the rate, before the schedule."""
        doubled = pr.optim.SGD(lr=0.1, groups=[pr.optim.Group("*.bias", lr_mult=2.0)])
        step, plain = make(optimizer=doubled), make(optimizer=pr.optim.SGD(lr=0.1))
        state = step.init()
        moved = step(state, X)["params"]
        for name, leaf in plain(plain.init(), X)["params"].items():
            factor = 2.0 if name.endswith("bias") else 1.0
            way = state["params", name] - leaf
            assert torch.allclose(state["params", name] - factor * way, moved[name], atol=1e-7), name

    def test_a_schedule_of_an_unknown_hyper_parameter_is_refused(self):
        """When the step is made."""
        with pytest.raises(ValueError, match=r"\['dampening', 'lr', 'momentum', 'weight_decay'\], which SGD has"):
            make(schedule=[pr.schedule.MultiStep([1], param="beta")])

    @pytest.mark.parametrize(
        "optimizer",
        [torch.optim.SGD, torch.optim.SGD([nn.Parameter(X)], lr=0.1), "sgd", None],
        ids=["class", "object", "text", "none"],
    )
    def test_what_is_no_optimizer_is_refused(self, optimizer):
        """With what to write instead."""
        with pytest.raises(TypeError, match=r"pr\.optim\.Torch\(torch\.optim"):
            make(optimizer=optimizer)

    @pytest.mark.parametrize("option", [{"engine": "jax"}, {"unused": "skip"}, {"nonfinite": "ignore"}], ids=str)
    def test_options_have_their_values(self, option):
        """Others are refused when the step is made."""
        with pytest.raises(ValueError, match=next(iter(option))):
            make(**option)


def run(step, state, count=3, batch=X):
    """Take some steps."""
    for _ in range(count):
        state = step(state, batch)
    return state


class TestFunctionalEngine:
    """Steps that can be mapped and differentiated."""

    @pytest.mark.parametrize("name", TRACED)
    def test_it_trains_like_the_other_engine(self, name):
        """To rounding: torch's functional forms and its fused kernels add in other orders."""
        first = make(optimizer=TRACED[name], model=network(torch.float64))
        second = attrs.evolve(first, engine="func")
        batch = X.double()
        a, b = run(first, first.init(), 5, batch), run(second, second.init(), 5, batch)

        for leaf_name, leaf in a["params"].items():
            assert torch.allclose(leaf, b["params", leaf_name], rtol=1e-9, atol=1e-10), leaf_name
        assert {d.path for d in pr.diff(a, b) if "against" in d.what or "only" in d.what} == set()

    @pytest.mark.parametrize("name", TRACED)
    @pytest.mark.parametrize("steps", [1, 3])
    def test_losses_can_be_differentiated_by_the_rate(self, name, steps):
        """Through several steps: against central differences."""
        step = make(optimizer=TRACED[name], model=network(torch.float64), engine="func")
        batch, start = X.double(), step.init()
        which = next(name for name in start["hyper"].names() if name.endswith("lr"))
        rate = start["hyper", which].item()

        def loss_after(lr):
            draft = unseal(start)
            draft["hyper"][which] = lr
            state = run(step, seal(draft), steps, batch)
            return squared_of(state, batch)

        def squared_of(state, batch):
            return (
                torch.func.functional_call(network(torch.float64), dict(state["params"].items()), (batch,))
                .square()
                .mean()
            )

        lr = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss_after(lr), lr)
        width = rate * 1e-4
        ahead, behind = (loss_after(torch.tensor(rate + way, dtype=torch.float64)) for way in (width, -width))

        assert pytest.approx(((ahead - behind) / (2 * width)).item(), rel=1e-4, abs=1e-9) == slope.item()
        assert slope.item() != 0

    def test_members_of_a_stack_are_single_runs(self):
        """Mapped over seeds' weights and rates, each member trains as it would alone."""
        step = make(optimizer=pr.optim.SGD(lr=0.1, momentum=0.9), model=network(torch.float64), engine="func")
        batch = X.double()
        starts = [step.init().replace(hyper={"lr": rate}) for rate in (0.01, 0.1, 0.5)]

        def one(params, optim, lr):
            draft = unseal(starts[0])
            draft["params"], draft["optim"] = dict(params), dict(optim)
            draft["hyper"]["lr"] = lr
            grads = step.read(draft, batch)
            step.write(draft, grads)
            return draft["params"]

        stacked = torch.stack(starts)
        members = torch.vmap(one)(
            dict(stacked["params"].items()),
            {"step": stacked["optim", "step"], "momentum_buffer": dict(stacked["optim", "momentum_buffer"].items())},
            stacked["hyper", "lr"],
        )
        for place, start in enumerate(starts):
            alone = step(start, batch)
            for name, leaf in alone["params"].items():
                assert torch.allclose(leaf, members[name][place], rtol=1e-12, atol=1e-13)

    def test_an_optimizer_without_such_a_form_is_refused(self):
        """With the ones that have it."""
        step = make(optimizer=pr.optim.Torch(torch.optim.Rprop, lr=0.01), engine="func")
        with pytest.raises(TypeError, match=r"no form to map or differentiate.*SGD, Adam, AdamW"):
            step(step.init(), X)

    def test_a_closure_is_refused(self):
        """A line search has none either."""
        with pytest.raises((TypeError, ValueError, StateError)):
            step = make(optimizer=pr.optim.Torch(torch.optim.LBFGS), engine="func")
            step(step.init(), X)


def test_a_line_search_looks_at_the_same_batch_with_the_same_chance():
    """LBFGS on a model with dropout: as the plain closure does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Linear(4, 1))
    step = pr.TrainStep(model, squared, pr.optim.Torch(torch.optim.LBFGS, lr=0.5, max_iter=4))
    state = step(step.init(seed=2), X)
    reference = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)

    def closure():
        with pr.random.keyed(pr.Key.of(2, "step", 0)), torch.enable_grad():
            reference.zero_grad()
            loss = squared(model, X)
            loss.backward()
        return loss

    reference.step(closure)

    assert all(torch.equal(param, state["params", name]) for name, param in model.named_parameters())
