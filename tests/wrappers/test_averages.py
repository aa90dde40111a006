"""Averages over time: torch's own averaged models and MMEngine's closed forms, beside the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn

import purerun as pr
from purerun.testing import MODELS, check_resume

CASES = [case for case in MODELS if case.inputs == "vectors" and case.name != "orthogonal"]


def annealed(average, now, count):
    """Move as an average with gamma 3 and decay 0.9 does, said with torch's interface."""
    return average + (now - average) * max(0.1, 3 / (3 + int(count)))


WRAPPERS = {
    "ema": (pr.EMA(0.9), {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}),
    "swa": (pr.SWA(), {"avg_fn": get_swa_avg_fn()}),
    "annealed": (pr.AnnealedEMA(0.9, gamma=3), {"avg_fn": annealed}),
}


def line(wrapper, **options):
    """Make a step on one weight whose value after n updates is n: averages of it are those of 1, 2, 3, ..."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    step = pr.TrainStep(model, lambda m, x: -m(x).mean(), pr.optim.SGD(lr=1.0), **options)
    return pr.wrap(step, wrapper)


def followed(wrapper, iters, **options):
    """List the average after each iteration."""
    step = line(wrapper, **options)
    state, found = step.init(), []
    for _ in range(iters):
        state = step(state, torch.ones(1, 1, dtype=torch.float64))
        found.append(state[wrapper.slot, "params", "weight"].item())
    return found


def mmengine(iters, move, *, interval=1, begin=0):
    """Follow MMEngine's rules for the weights 1, 2, 3, ...: its hook copies before `begin`, its first update copies."""
    average, steps, found = 0.0, 0, []
    for now in range(1, iters + 1):
        if now < begin or steps == 0:
            average = float(now)
        elif steps % interval == 0:
            average += (now - average) * move(steps)
        steps += now >= begin
        found.append(average)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("wrapper", "how"), WRAPPERS.values(), ids=WRAPPERS)
def test_it_is_torch_s_averaged_model(case, wrapper, how):
    """The same average of the trained parameters after each of ten iterations."""
    step = pr.wrap(pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.1)), wrapper)
    state = step.init(seed=1)
    model = case.module()
    averaged = AveragedModel(model, **how)
    for seed in range(10):
        state = step(state, case.data(seed))
        model.load_state_dict({**state["params"], **state["buffers"]}, strict=False)
        averaged.update_parameters(model)

    average = state[wrapper.slot]
    expected = dict(averaged.module.named_parameters())
    assert {name for name, param in model.named_parameters() if param.requires_grad} == set(average["params"].names())
    for name, leaf in average["params"].items():
        assert torch.allclose(expected[name], leaf, rtol=1e-5, atol=1e-6), name


@given(which=st.sampled_from(["ema", "swa", "annealed"]), interval=st.integers(1, 4), begin=st.integers(0, 6))
def test_counting_is_mmengine_s(which, interval, begin):
    """Any interval and any beginning."""
    options = {"interval": interval, "begin": begin}
    wrapper, move = {
        "ema": (pr.EMA(0.75, **options), lambda _: 0.25),
        "swa": (pr.SWA(**options), lambda steps: 1 / (steps // interval + 1)),
        "annealed": (pr.AnnealedEMA(0.75, gamma=2, **options), lambda steps: max(0.25, 2 / (2 + steps))),
    }[which]

    assert mmengine(12, move, interval=interval, begin=begin) == pytest.approx(followed(wrapper, 12), rel=1e-12)


@pytest.mark.parametrize("buffers", ["copy", "average"])
@pytest.mark.parametrize("kind", ["ema", "swa", "annealed"])
def test_the_installed_mmengine_agrees(kind, buffers):
    """Its averaged models, on a net with batch norm, over ten iterations.

    But for counts beside averaged buffers: there they stay what they were at first, here they are the newest.
    """
    models = pytest.importorskip("mmengine.model")
    flag = {"update_buffers": buffers == "average", "interval": 2}
    make = {
        "ema": (pr.EMA(0.9, interval=2, buffers=buffers), models.ExponentialMovingAverage, {"momentum": 0.1}),
        "swa": (pr.SWA(interval=2, buffers=buffers), models.StochasticWeightAverage, {}),
        "annealed": (
            pr.AnnealedEMA(0.9, gamma=3, interval=2, buffers=buffers),
            models.MomentumAnnealingEMA,
            {"momentum": 0.1, "gamma": 3},
        ),
    }
    wrapper, theirs, options = make[kind]
    case = next(case for case in MODELS if case.name == "batch norm")
    step = pr.wrap(pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.1)), wrapper)
    state, model = step.init(seed=1), case.module()
    averaged = theirs(model, **options, **flag)
    for seed in range(10):
        state = step(state, case.data(seed))
        model.load_state_dict({**state["params"], **state["buffers"]})
        averaged.update_parameters(model)

    average = {**state[wrapper.slot, "params"], **state[wrapper.slot, "buffers"]}
    for name, leaf in averaged.module.state_dict().items():
        if leaf.is_floating_point() or buffers == "copy":
            assert torch.allclose(leaf, average[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("wrapper", [pr.EMA(0.9999), pr.SWA()], ids=repr)
@pytest.mark.parametrize("masters", [(), (pr.Masters(),)], ids=["plain", "masters"])
def test_an_average_of_sixteen_bits_moves_as_one_of_many(wrapper, masters):
    """Its own steps are too small for bfloat16: it is kept in float32, and judged in the dtype of the model."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.zeros_(model.weight)
    step = pr.wrap(pr.TrainStep(model, lambda m, x: -m(x).float().mean(), pr.optim.SGD(lr=1.0)), *masters, wrapper)
    state, x = step.init(), torch.ones(1, 1).bfloat16()
    for _ in range(200):
        state = step(state, x)
    (expected,) = followed(wrapper, 200)[-1:]

    average = state[wrapper.slot, "params", "weight"]
    assert torch.float32 == average.dtype
    assert pytest.approx(expected, rel=1e-3) == average.item()
    assert torch.bfloat16 == pr.PredictStep(model, weights=wrapper.slot)(state, x).dtype


def test_the_update_of_a_part_window_is_averaged():
    """A loop that ends in one: its last update counts, after that iteration's own."""
    step = pr.wrap(line(pr.Accumulate(3)), pr.EMA(0.5))
    x = torch.ones(1, 1, dtype=torch.float64)
    *_, last = pr.TrainLoop(step, iters=4)(step.init(), [x] * 4)
    # The weight after each update of the average; the first copies.
    first, *weights = [0.0, 0.0, 1.0, 1.0, 2.0]
    average = first
    for weight in weights:
        average += 0.5 * (weight - average)

    assert 2.0 == last["params", "weight"].item()
    assert pytest.approx(average) == last["ema", "params", "weight"].item()


def test_averaging_begins_with_an_epoch():
    """Two batches an epoch; from the second epoch on: copies before, then the first update copies too."""
    wrapper = pr.SWA(begin=2, by="epoch")
    step = line(wrapper)
    loader = pr.Loader([torch.ones(1, dtype=torch.float64)] * 2, batch_size=1)
    states = list(pr.TrainLoop(step, epochs=3)(step.init(), loader))

    found = [state["swa", "params", "weight"].item() for state in states]
    assert [1, 2, 3, 3.5, 4, 4.5] == pytest.approx(found)


@pytest.mark.parametrize("wrapper", [pr.EMA(0.9), pr.EMA(0.9, interval=3), pr.SWA(begin=2)], ids=repr)
def test_buffers_are_copied(wrapper):
    """The average has the buffers of the last iteration, whether or not it has moved."""
    case = next(case for case in MODELS if case.name == "batch norm")
    step = pr.wrap(pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.1)), wrapper)
    state = step.init()
    for seed in range(3):
        state = step(state, case.data(seed))

        average = state[wrapper.slot, "buffers"]
        assert all(torch.equal(leaf, average[name]) for name, leaf in state["buffers"].items())


def test_buffers_are_averaged_if_asked():
    """Running means and variances by the rule of the weights; the count of batches is copied."""
    case = next(case for case in MODELS if case.name == "batch norm")
    step = pr.wrap(pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.1)), pr.EMA(0.75, buffers="average"))
    states = [step.init()]
    for seed in range(3):
        states.append(step(states[-1], case.data(seed)))

    for name, leaf in states[3]["ema", "buffers"].items():
        one, two, three = (state["buffers", name] for state in states[1:])
        expected = 0.75 * (0.75 * one + 0.25 * two) + 0.25 * three if leaf.is_floating_point() else three
        assert torch.allclose(expected, leaf, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("wrapper", [pr.EMA(0.5, buffers="average"), pr.SWA(buffers="average")], ids=repr)
def test_there_may_be_no_buffers_to_average(wrapper):
    """Or only such as count."""
    counting = nn.Linear(1, 1).double()
    counting.register_buffer("count", torch.tensor(3))
    step = pr.wrap(pr.TrainStep(counting, lambda m, x: m(x).mean(), pr.optim.SGD(lr=1.0)), wrapper)
    state = step.init()
    for _ in range(3):
        state = step(state, torch.ones(1, 1, dtype=torch.float64))

    assert len(followed(wrapper, 3)) == 3
    assert 3 == int(state[wrapper.slot, "buffers", "count"])


@pytest.mark.parametrize(("decay", "which"), [(0.0, 2), (1.0, 1)], ids=["all new", "all old"])
def test_the_ends_of_the_scale(decay, which):
    """At 0 the average is the weights, at 1 it stays where its first update put it."""
    found = followed(pr.EMA(decay), 2)

    assert which == found[-1]


def test_a_copy_of_weights_that_blew_up_is_one():
    """The first update copies, and makes nothing of infinities."""
    wrapper = pr.EMA(0.9)
    step = line(wrapper, nonfinite="allow")
    state = step.init().replace(params={"weight": torch.full((1, 1), float("inf"), dtype=torch.float64)})
    after = step(state, torch.ones(1, 1, dtype=torch.float64))

    assert torch.equal(after["params", "weight"], after["ema", "params", "weight"])


def test_two_averages_of_one_run():
    """An exponential and a stochastic one, each in its slot."""
    step = pr.wrap(line(pr.EMA(0.5)), pr.SWA())
    state = step.init()
    for _ in range(3):
        state = step(state, torch.ones(1, 1, dtype=torch.float64))

    assert (2.25, 2.0) == tuple(state[slot, "params", "weight"].item() for slot in ("ema", "swa"))


@pytest.mark.parametrize("wrapper", [pr.AnnealedEMA(gamma=2, interval=2), pr.SWA(begin=3)], ids=repr)
def test_a_resumed_average_goes_on(wrapper):
    """Its count is in the state."""
    step = line(wrapper)

    check_resume(pr.TrainLoop(step, iters=7), step.init(), [torch.ones(1, 1, dtype=torch.float64)] * 3)


def test_validation_judges_the_averaged_weights():
    """Nothing is swapped in or out: the state is as it was."""
    step = line(pr.EMA(0.5))
    x = torch.ones(1, 1, dtype=torch.float64)
    state = step(step(step(step.init(), x), x), x)
    before = pr.digest(state)
    predicted = [pr.PredictStep(step.step.model, weights=which)(state, x).item() for which in ("", "ema")]

    assert [3.0, 2.25] == predicted
    assert before == pr.digest(state)


def test_both_sets_are_saved_and_exported(tmp_path):
    """A checkpoint holds the weights and their average, each to be had as plain weights."""
    step = line(pr.SWA())
    x = torch.ones(1, 1, dtype=torch.float64)
    state = step(step(step.init(), x), x)
    pr.save(state, tmp_path / "a")

    assert pr.digest(state) == pr.digest(pr.load(tmp_path / "a"))
    weights = [pr.load_weights(step.init(), tmp_path / "a", weights=which)[0] for which in ("", "swa")]
    assert [2.0, 1.5] == [taken["params", "weight"].item() for taken in weights]


def test_the_weights_do_not_see_it():
    """Training with an average beside it is training."""
    plain = pr.TrainStep(nn.Linear(2, 1), lambda m, x: m(x).square().mean(), pr.optim.AdamW(lr=0.1))
    step = pr.wrap(plain, pr.EMA(0.9))
    first, second = plain.init(), step.init()
    for _ in range(3):
        first, second = plain(first, torch.ones(3, 2)), step(second, torch.ones(3, 2))

    assert pr.digest(first) == pr.digest(second.exclude("ema"))


def test_order_matters_and_says_what_it_means():
    """Inside of an accumulation it averages over updates, outside over iterations."""
    x = torch.ones(3, 2)
    plain = pr.TrainStep(nn.Linear(2, 1), lambda m, x: m(x).square().mean(), pr.optim.SGD(lr=0.1))
    outside, inside = (
        pr.wrap(plain, *pair) for pair in ([pr.Accumulate(2), pr.EMA(0.5)], [pr.EMA(0.5), pr.Accumulate(2)])
    )
    a, b = outside.init(), inside.init()
    for _ in range(4):
        a, b = outside(a, x), inside(b, x)

    assert torch.equal(a["params", "weight"], b["params", "weight"])
    assert not torch.equal(a["ema", "params", "weight"], b["ema", "params", "weight"])


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (pr.EMA, {"decay": -0.1}),
        (pr.EMA, {"decay": 1.1}),
        (pr.EMA, {"by": "step"}),
        (pr.EMA, {"buffers": "mean"}),
        (pr.SWA, {"interval": 0}),
        (pr.SWA, {"begin": -1}),
        (pr.AnnealedEMA, {"gamma": 0}),
    ],
    ids=str,
)
def test_wrong_values_are_refused_when_they_are_made(kind, wrong):
    """By the name of the field."""
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` should"):
        kind(**wrong)
