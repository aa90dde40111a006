"""The frame of steps: two halves, counters, fitting states, and errors that leave everything whole."""

from __future__ import annotations

import math
import warnings

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.data import Position
from purerun.grad import LossError
from purerun.state import StateError, seal, unseal
from purerun.step import BatchError, NonFiniteLoss, StepChanged, fit
from purerun.testing import counted
from purerun.testing.snapshot import of_module, of_process, of_state

X = torch.arange(24.0).reshape(12, 2).sin()


def squared(model, batch):
    """Compute a loss."""
    return model(batch["x"]).square().mean()


def network():
    """Make a small module with buffers and chance."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1))


def make(loss=squared, *, model=None, optimizer=pr.optim.SGD(lr=0.1, momentum=0.9), **options):  # noqa: B008
    """Make a step."""
    return pr.TrainStep(model or network(), loss, optimizer, **options)


class TestInit:
    """The first state."""

    def test_it_has_the_module_s_weights_and_every_slot(self):
        """Names are those of the `state_dict`, numbers the module's own, counters zero."""
        model = network()
        state = make(model=model).init(seed=5)
        values = {name: int(state[name]) for name in ("epoch", "iter", "cursor", "seed")}
        expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}

        assert {"epoch": 0, "iter": 0, "cursor": 0, "seed": 5} == values
        assert all(torch.equal(expected[name], leaf) for name, leaf in state["params"].items())
        assert all(torch.equal(expected[name], leaf) for name, leaf in state["buffers"].items())
        assert set(model.state_dict()) == {*state["params"].names(), *state["buffers"].names()}
        assert {"momentum_buffer", "step"} == set(state["optim"].names())
        assert 0.1 == state["hyper", "lr"].item()
        assert {"cpu"} == {leaf.device.type for leaf in (state["epoch"], state["seed"], state["hyper", "lr"])}

    def test_training_the_state_leaves_the_module_s_weights_alone(self):
        """And changing the module later leaves the state alone."""
        model = network()
        step = make(model=model)
        state = step.init()
        looks = of_state(state)
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()

        assert looks == of_state(state)
        assert of_state(step.init()) != looks

    @pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "0", None, True])
    def test_the_seed_is_a_number_that_a_state_can_hold(self, seed):
        """Others are refused."""
        with pytest.raises(ValueError, match=r"expected a seed with 0 <= seed < 2\*\*63, got"):
            make().init(seed)

    def test_the_largest_seed_works(self):
        """All 63 bits are used."""
        step = make()
        first, second = (step(step.init(seed), {"x": X}) for seed in (2**63 - 1, 2**63 - 2))

        assert 2**63 - 1 == int(first["seed"])
        assert not torch.equal(first["params", "0.weight"], second["params", "0.weight"])


class TestStepping:
    """A call, its halves, and what a loop calls."""

    def test_a_call_counts_one_iteration(self):
        """The position in the data is the loop's."""
        step = make()
        state = step(step(step.init(), {"x": X}), {"x": X})

        assert (2, 0, 0) == tuple(int(state[name]) for name in ("iter", "epoch", "cursor"))

    def test_the_report_says_what_was_measured_and_used(self):
        """The loss, and the rate after the schedule."""
        step = make(schedule=[pr.schedule.MultiStep([1], gamma=0.5, by="iter")])
        first = step(step.init(), {"x": X})
        second = step(first, {"x": X})

        assert [0.1, 0.05] == [state["metrics", "lr"].item() for state in (first, second)]
        assert float(step.grad(first, {"x": X}).metrics["loss"]) == float(second["metrics", "loss"])

    def test_the_report_is_not_carried_over(self):
        """What the step before measured is gone."""
        step = make()
        state = step(step.init().replace(metrics={"old": 1.0}), {"x": X})

        assert {"loss", "lr"} == set(state["metrics"].names())

    def test_halves_make_the_whole(self):
        """Gradients can be used again, for another state even, and stay as they were."""
        step = make()
        state = step.init()
        grads = step.grad(state, {"x": X})
        before = {name: grad.clone() for name, grad in grads.grads.items()}
        first, second = step.update(state, grads), step.update(state, grads)

        assert of_state(step(state, {"x": X})) == of_state(first) == of_state(second)
        assert all(torch.equal(before[name], grad) for name, grad in grads.grads.items())
        looks = of_state(second)
        first["buffers", "1.running_mean"].zero_()
        first["metrics", "loss"].zero_()
        assert looks == of_state(second) == of_state(step.update(state, grads))

    def test_advancing_moves_the_position(self):
        """And nothing else is different from a call."""
        step = make()
        state = step.init()
        plain, moved = step(state, {"x": X}), step.advance(state, {"x": X}, Position(1, 7))

        assert of_state(plain.replace(epoch=1, cursor=7)) == of_state(moved)

    def test_a_lease_is_emptied_and_gives_the_same_bits(self):
        """The state that was leased is gone, the new one is the same."""
        step = make()
        state = step.init()
        expected = of_state(step.advance(state, {"x": X}, Position(0, 4)))
        given = step.advance(state, {"x": X}, Position(0, 4), lease=True)

        assert expected == of_state(given)
        with pytest.raises(pr.StaleState):
            state.names()

    def test_hyper_parameters_are_read_from_the_state(self):
        """Replacing a leaf is all it takes; zero momentum is one of the values."""
        step = make()
        state = step(step.init(), {"x": X})
        still = step(state.replace(hyper={"lr": 0.0, "weight_decay": 0.0}), {"x": X})
        plain = step(state.replace(hyper={"momentum": 0.0}), {"x": X})
        grads = step.grad(state, {"x": X}).grads

        assert all(torch.equal(leaf, still["params", name]) for name, leaf in state["params"].items())
        for name, leaf in state["params"].items():
            assert torch.allclose(leaf - 0.1 * grads[name], plain["params", name], atol=1e-7)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda grads: {"0.weight": grads["0.weight"]}, "expected a gradient for each trained parameter"),
            (lambda grads: {**grads, "more": grads["0.weight"]}, "'more'"),
            (lambda grads: {**grads, "0.weight": torch.zeros(1)}, r"0\.weight.*\[3, 2\], got .*\[1\]"),
            (lambda grads: {**grads, "0.weight": grads["0.weight"].double()}, "float64"),
        ],
        ids=["missing", "extra", "shape", "dtype"],
    )
    def test_gradients_must_fit(self, change, words):
        """They are checked before any kernel reads them."""
        step = make()
        state = step.init()
        looks = of_state(state)
        grads = step.grad(state, {"x": X})
        with pytest.raises(StateError, match=words):
            step.update(state, attrs.evolve(grads, grads=change(grads.grads)))

        assert looks == of_state(state)


def raising(error):
    """Make a loss that writes into buffers and then raises."""

    def loss(model, batch):
        model(batch["x"])
        raise error

    return loss


ERRORS = {
    "key": (lambda model, batch: model(batch["image"]), BatchError, ["'image'", "{x: float32 [12, 2]}"]),
    "shape": (
        lambda model, batch: model(batch["x"].repeat(1, 2)).mean(),
        BatchError,
        ["(12x4 and 2x3)", "in iteration 0", "{x: float32 [12, 2]}"],
    ),
    "dtype": (lambda model, batch: model(batch["x"].long()).mean(), BatchError, ["dtype", "x: float32 [12, 2]"]),
    "vector": (lambda model, batch: model(batch["x"]), LossError, ["[12, 1]", "reduce it"]),
    "detached": (lambda model, batch: squared(model, batch).detach(), LossError, ["no gradient", "detached"]),
    "none": (lambda model, batch: None, LossError, ["NoneType", "pr.Loss(sum, weight)"]),
    "unused": (
        lambda model, batch: model[0](batch["x"]).mean(),
        LossError,
        ["4 of 6", "`1.weight`", "requires_grad_(False)", "unused='zero'"],
    ),
    "nan": (lambda model, batch: squared(model, batch) * math.nan, NonFiniteLoss, ["loss=nan", "nonfinite='allow'"]),
    "infinite": (lambda model, batch: squared(model, batch) / 0, NonFiniteLoss, ["loss=inf"]),
    "part of it nan": (
        lambda model, batch: {"a": squared(model, batch), "b": squared(model, batch) * math.nan},
        NonFiniteLoss,
        ["b=nan"],
    ),
    "own error": (raising(ZeroDivisionError("mine")), ZeroDivisionError, ["mine", "in iteration 0"]),
    "interrupt": (raising(KeyboardInterrupt("now")), KeyboardInterrupt, ["now"]),
}


class TestErrors:
    """Each says what was expected, what came, where, and what to do; and nothing is harmed."""

    @pytest.mark.parametrize("engine", ["autograd", "func"])
    @pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
    @pytest.mark.parametrize(("loss", "kind", "words"), ERRORS.values(), ids=ERRORS)
    def test_an_error_in_a_batch_leaves_everything_whole(self, loss, kind, words, lease, engine):
        """The state, the module, the batch and the process are as before, in lease mode too."""
        if engine == "func" and loss is ERRORS["unused"][0]:
            pytest.skip("torch.func cannot tell what a loss depends on")
        model = network()
        step, batch = make(loss, model=model, engine=engine), {"x": X.clone()}
        # Another of the same bits is looked at: a lease that nobody has looked into is the harder case.
        state = step.init()
        looks = of_state(step.init()), of_module(model, "model"), of_process(), X.tolist()
        with pytest.raises(kind) as error:
            step.advance(state, batch, Position(0, 4), lease=lease)
        told = "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])

        assert [] == [word for word in words if word not in told]
        assert looks == (of_state(state), of_module(model, "model"), of_process(), batch["x"].tolist())
        assert not any(leaf.requires_grad for leaf in state["params"].values())

    def test_a_nan_can_be_allowed(self):
        """Then it is reported like any loss."""
        step = make(ERRORS["nan"][0], nonfinite="allow")

        assert math.isnan(step(step.init(), {"x": X})["metrics", "loss"])

    def test_a_reported_nan_is_no_error(self):
        """Only the loss decides."""
        step = make(lambda model, batch: {"loss": squared(model, batch), "seen": torch.tensor(math.nan)})

        assert math.isnan(step(step.init(), {"x": X})["metrics", "seen"])

    def test_an_unused_parameter_can_be_allowed(self):
        """Its gradient is zero, so that momentum and decay go on."""
        step = make(ERRORS["unused"][0], unused="zero", optimizer=pr.optim.SGD(lr=0.1))
        state = step.init()

        assert torch.equal(state["params", "3.weight"], step(state, {"x": X})["params", "3.weight"])

    @pytest.mark.parametrize("given", [{}, X, None, "state"], ids=["dict", "tensor", "none", "text"])
    def test_what_is_no_state_is_refused(self, given):
        """The remedy is told."""
        with pytest.raises(StateError, match=r"expected a State, got .*step\.init\(seed\) or pr\.load\(path\)"):
            make()(given, {"x": X})

    @pytest.mark.parametrize("gone", ["params", "buffers", "optim", "hyper"])
    def test_a_state_without_a_slot_is_refused(self, gone):
        """The first missing leaf is named, and how to make the state fit."""
        step = make()
        with pytest.raises(StateError, match=rf"expected a state with `{gone}/.*got no `{gone}/.*step\.adopt\(state\)"):
            step(step.init().exclude(gone).replace({gone: {}}), {"x": X})

    def test_a_state_of_another_optimizer_is_refused(self):
        """A momentum step does not silently go on without momentum."""
        state = make(optimizer=pr.optim.SGD(lr=0.1)).init()
        with pytest.raises(StateError, match=r"hyper/dampening"):
            make()(state, {"x": X})


class TestFitting:
    """Going on with another step is noticed, shown, and possible."""

    def test_a_state_of_the_same_program_fits(self):
        """Also when the module is another object."""
        state = make().init()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            after = fit(state, make())

        assert of_state(state) == of_state(after)

    def test_another_program_is_shown(self):
        """The lines that differ, and which hyper-parameters stay."""
        state = make().init()
        other = make(optimizer=pr.optim.SGD(lr=0.2, momentum=0.9))
        with pytest.warns(StepChanged) as caught:
            after = fit(state, other)
        told = str(caught[0].message)

        assert "lr is 0.1, not 0.2" in told
        assert all(word in told for word in ("- optimizer: SGD(", "+ optimizer: SGD(", "state.replace(hyper="))
        assert torch.equal(other.fingerprint(), after["fingerprint"])
        assert pr.digest(state) == pr.digest(after)

    def test_a_state_that_does_not_fit_is_refused(self):
        """With the leaf and the remedy."""
        state = make(optimizer=pr.optim.AdamW(lr=0.1)).init()
        with pytest.raises(StateError, match=r"got no `hyper/dampening`; .*step\.adopt\(state\)"):
            fit(state, make())

    def test_a_state_that_is_none_is_refused(self):
        """A state needs counters and a seed."""
        with pytest.raises(StateError, match=r"made by step\.init\(seed\)"):
            fit(seal({"x": torch.zeros(1)}), make())

    def test_adopting_keeps_what_fits(self):
        """Weights, buffers, counters and scores; the slots and hyper-parameters are the new step's."""
        old = make()
        state = old(old.init(3), {"x": X}).replace(scores={"top": 1.0}, cursor=4)
        new = pr.wrap(make(optimizer=pr.optim.AdamW(lr=0.5)), pr.EMA(0.9))
        adopted = new.adopt(state)
        after = new(adopted, {"x": X})

        assert all(torch.equal(leaf, adopted["params", name]) for name, leaf in state["params"].items())
        assert all(torch.equal(leaf, adopted["buffers", name]) for name, leaf in state["buffers"].items())
        assert (1, 4, 3, 1.0, 0.5) == (
            int(adopted["iter"]),
            int(adopted["cursor"]),
            int(adopted["seed"]),
            float(adopted["scores", "top"]),
            adopted["hyper", "lr"].item(),
        )
        assert {"exp_avg", "exp_avg_sq"} <= set(adopted["optim"].names())
        assert "momentum_buffer" not in adopted["optim"].names()
        assert 2 == int(after["iter"])
        assert of_state(fit(adopted, new)) == of_state(adopted)

    def test_other_parameters_cannot_be_adopted(self):
        """Another architecture is no continuation."""
        state = make(model=nn.Linear(5, 1)).init()
        with pytest.raises(StateError, match=r"expected a state with `(buffers|params)/"):
            make().adopt(state)


class TestSeveralSteps:
    """Several steps, one state."""

    def test_their_slots_are_joined(self):
        """Each has its own optimizer and hyper-parameters under its name."""
        pair = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
        first = pr.TrainStep(pair, lambda m, x: m["a"](x).mean(), pr.optim.SGD(lr=0.1), name="first", params="a.*")
        second = pr.TrainStep(pair, lambda m, x: m["b"](x).mean(), pr.optim.AdamW(lr=0.2), name="second", params="b.*")
        state = pr.init(0, first, second)
        after = second(first(state, X), X)

        assert {"first", "second"} == set(state["hyper"].names())
        assert {"a.weight", "a.bias", "b.weight", "b.bias"} == set(after["params"].names())
        assert torch.equal(first(state, X)["params", "b.weight"], state["params", "b.weight"])
        assert {"first.lr", "first.loss", "second.lr", "second.loss"} == set(after["metrics"].names())
        assert 2 == int(after["iter"])
        assert not torch.equal(state["params", "b.weight"], after["params", "b.weight"])

    def test_steps_need_names(self):
        """Unnamed ones would share their slots."""
        with pytest.raises(StateError, match="name='critic'"):
            pr.init(0, make(), make(name="b"))
        with pytest.raises(StateError, match="name them"):
            pr.init(0, make(name="b"), make(name="b"))

    def test_steps_of_different_modules_are_refused(self):
        """Two modules with the same names would silently share one set of weights."""
        other = network()
        with torch.no_grad():
            other[0].weight.add_(1)
        with pytest.raises(StateError, match=r"params/0\.weight"):
            pr.init(0, make(name="a"), make(name="b", model=other))


class TestFinishing:
    """The end of a loop."""

    def test_a_step_without_windows_is_finished_already(self):
        """The state stays the state."""
        step = make()
        state = step(step.init(), {"x": X})

        assert of_state(state) == of_state(step.finish(state))

    def test_an_open_window_is_applied_with_its_own_rate(self):
        """That of its last iteration, although the counters have moved on."""
        schedule = [pr.schedule.MultiStep([3], gamma=0.0, by="iter"), pr.schedule.MultiStep([1], gamma=0.0, by="epoch")]
        plain = make(schedule=schedule, optimizer=pr.optim.SGD(lr=0.1), model=nn.Linear(2, 1))
        step = pr.wrap(plain, pr.Accumulate(2))
        states = list(pr.TrainLoop(step, epochs=1)(step.init(), [{"x": X[:4]}, {"x": X[4:8]}, {"x": X[8:]}]))
        before = states[1]
        grads = plain.grad(before, {"x": X[8:]}).grads

        for name, leaf in before["params"].items():
            assert torch.allclose(leaf - 0.1 * grads[name], states[2]["params", name], atol=1e-7)
        assert (3, 1, 0) == tuple(int(states[2][name]) for name in ("iter", "epoch", "cursor"))
        assert 0 == int(states[2]["accumulate", "count"])


def test_a_step_is_a_value():
    """Equal parts make equal steps; changing one makes another."""
    model = network()
    first, second = make(model=model), make(model=model)

    assert first == second
    assert attrs.evolve(first, unused="zero") != first
    assert "TrainStep(model=Sequential, loss=squared" in repr(first)


def test_counters_that_are_anywhere_work():
    """A step reads its counters from the state, so any state can be stepped from."""
    step = make()
    draft = unseal(step.init())
    state = seal({**draft, "iter": torch.tensor(10**12), "epoch": torch.tensor(7)})

    assert 10**12 + 1 == int(step(state, {"x": X})["iter"])
    assert counted(iter=3).names()


@pytest.mark.parametrize(
    ("name", "wrappers"),
    [
        ("lr", []),
        ("grad_norm", [pr.Clip(1.0)]),
        ("skipped", [pr.SkipNonFinite()]),
        ("microbatches", [pr.Microbatch(on_oom="halve")]),
    ],
)
def test_a_term_with_the_name_of_a_report_is_refused(name, wrappers):
    """One of the two would be lost without a word."""

    def loss(model, x):
        return {"loss": model(x).mean(), name: torch.tensor(1.0)}

    step = pr.wrap(pr.TrainStep(nn.Linear(2, 1), loss, pr.optim.SGD(lr=0.1)), *wrappers)
    with pytest.raises(LossError, match=rf"{name}.*call (them|it) something else"):
        step(step.init(), torch.ones(4, 2))


def test_an_error_names_the_user_s_own_line():
    """And no line of torch's or ours."""
    step = pr.wrap(
        pr.TrainStep(nn.Sequential(nn.Linear(3, 1)), lambda m, x: m(x).mean(), pr.optim.SGD(lr=0.1), engine="func"),
        pr.Dropout(0.1),
    )
    with pytest.raises(BatchError, match=r"in <lambda>, .*test_step.py"):
        step(step.init(), torch.ones(4, 2))
