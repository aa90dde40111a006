"""Prediction and validation: in evaluation mode, on any weights of a state, and without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.bind import ModelError
from purerun.data import Tensors
from purerun.testing import MODELS
from purerun.testing.snapshot import of_batch, of_module, of_process, of_state


def trained(case, *wrappers, steps=3):
    """Make a step of a case and a state after a few iterations."""
    step = pr.wrap(pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.5)), *wrappers)
    state = step.init(seed=1)
    for seed in range(steps):
        state = step(state, case.data(seed))
    return step, state


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_a_prediction_is_the_model_in_evaluation_mode(case):
    """With the weights and buffers of the state; state, batch, module and process are untouched."""
    _, state = trained(case)
    model, reference, batch = case.module(seed=9), case.module(seed=8), case.data(seed=7)
    reference.load_state_dict({**state["params"], **state["buffers"]}, strict=False)
    for name, buffer in reference.named_buffers():
        buffer.copy_(state["buffers", name])
    looks = of_state(state), of_module(model, "model"), of_process(), of_batch(batch)
    output = pr.PredictStep(model)(state, batch)
    with torch.no_grad():
        expected = reference.eval()(batch["x"]) if case.name != "noise" else output

    assert torch.equal(expected, output)
    assert not output.requires_grad
    assert looks == (of_state(state), of_module(model, "model"), of_process(), of_batch(batch))


def test_chance_in_evaluation_is_keyed():
    """A model that draws numbers even then gives the same ones for the same state."""
    case = next(case for case in MODELS if case.name == "noise")
    _, state = trained(case)
    predict = pr.PredictStep(case.module())
    first = predict(state, case.data())
    torch.rand(5)

    assert torch.equal(first, predict(state, case.data()))
    assert not torch.equal(first, predict(state.replace(iter=99), case.data()))


def test_a_slot_of_weights_can_be_evaluated():
    """The average of an EMA, without swapping anything in or out."""
    case = next(case for case in MODELS if case.name == "batch norm")
    _, state = trained(case, pr.EMA(0.5))
    averaged = state.replace(params=state["ema", "params"], buffers=state["ema", "buffers"])
    batch, model = case.data(), case.module()

    assert torch.equal(pr.PredictStep(model)(averaged, batch), pr.PredictStep(model, weights="ema")(state, batch))
    assert not torch.equal(pr.PredictStep(model)(state, batch), pr.PredictStep(model, weights="ema")(state, batch))


def test_averages_of_several_steps_are_named():
    """An entry that holds those of several is none itself."""
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    steps = [
        pr.wrap(
            pr.TrainStep(
                model, lambda m, x, name=name: m[name](x).mean(), pr.optim.SGD(), name=name, params=f"{name}.*"
            ),
            pr.EMA(),
        )
        for name in model
    ]
    state = pr.init(0, *steps)

    for weights in ("ema", "ema/c", "optim", "params"):
        with pytest.raises(pr.StateError, match=r"among the averaged weights of the state, \['ema/a', 'ema/b'\]"):
            pr.PredictStep(model, lambda m, x: m["a"](x), weights)(state, torch.ones(1, 2))
    assert pr.PredictStep(model, lambda m, x: m["a"](x), "ema/a")(state, torch.ones(1, 2)).shape == (1, 1)


def test_frozen_parts_come_from_the_trained_weights():
    """A slot holds only what is trained."""
    case = next(case for case in MODELS if case.name == "frozen backbone")
    _, state = trained(case, pr.EMA(0.5))

    assert torch.Size([20, 3]) == pr.PredictStep(case.module(), weights="ema")(state, case.data()).shape
    assert {"head.weight", "head.bias"} == set(state["ema", "params"].names())


def test_the_user_says_how_the_model_is_called():
    """`forward` gets the model and the batch."""
    case = MODELS[0]
    _, state = trained(case)
    predict = pr.PredictStep(case.module(), forward=lambda model, batch: {"p": model(batch["x"]).softmax(-1)})

    assert torch.allclose(torch.ones(20), predict(state, case.data())["p"].sum(-1))


def test_a_forward_that_writes_into_weights_harms_no_state():
    """An embedding that renormalises itself is refused, and the state is as it was."""
    model = nn.Embedding(10, 3, max_norm=0.1)
    state = pr.TrainStep(nn.Embedding(10, 3), lambda model, x: model(x).mean(), pr.optim.SGD()).init()
    looks = of_state(state)
    with pytest.raises(ModelError, match="writes into `weight`"):
        pr.PredictStep(model)(state, torch.arange(5))

    assert looks == of_state(state)


def test_validation_counts_samples_and_not_batches():
    """Scores over unequal batches are those over all samples at once."""
    case = MODELS[0]
    _, state = trained(case)
    model, batch = case.module(), case.data(samples=23)
    loop = pr.ValLoop(pr.ValStep(model, metrics={"accuracy": pr.metrics.Accuracy()}))
    scores = loop(state, pr.Loader(Tensors(**batch), batch_size=5))
    output = pr.PredictStep(model)(state, batch)
    expected = (output.argmax(1) == batch["y"]).double().mean()

    assert pytest.approx(expected.item()) == float(scores["accuracy"])


def test_a_validation_step_is_pure():
    """Tallies that are kept stay as they are."""
    case = MODELS[0]
    _, state = trained(case)
    step = pr.ValStep(case.module(), metrics={"accuracy": pr.metrics.Accuracy()})
    first = step.init()
    before = of_batch(first)
    second = step(state, first, case.data())
    middle = of_batch(second)
    step(state, second, case.data(seed=2))

    assert before == of_batch(first)
    assert middle == of_batch(second)
    assert before != middle


def test_training_and_evaluating_one_module_in_turns():
    """Both bind the same module, one inside of the other even."""
    case = next(case for case in MODELS if case.name == "batch norm")
    model = case.module()
    looks = of_module(model, "model")
    teacher = pr.TrainStep(model, case.loss, pr.optim.SGD(lr=0.1)).init(0)
    predict = pr.PredictStep(model)

    def distilling(inner, batch):
        target = predict(teacher, batch)
        return (inner(batch["x"]) - target).square().mean()

    step = pr.TrainStep(model, distilling, pr.optim.SGD(lr=0.1))
    other = pr.TrainStep(
        case.module(), lambda inner, batch: (inner(batch["x"]) - target).square().mean(), pr.optim.SGD(lr=0.1)
    )
    target = predict(teacher, case.data())
    start = teacher.replace(params={"1.weight": teacher["params", "1.weight"] * 2})

    assert pr.digest(other(start, case.data())) == pr.digest(step(start, case.data()))
    assert looks == of_module(model, "model")


def test_a_prediction_loop_gives_one_output_a_batch():
    """In the order of the loader."""
    case = MODELS[0]
    _, state = trained(case)
    batch = case.data(samples=10)
    outputs = list(pr.PredictLoop(pr.PredictStep(case.module()))(state, pr.Loader(Tensors(**batch), batch_size=4)))

    assert [4, 4, 2] == [len(output) for output in outputs]
    assert torch.allclose(pr.PredictStep(case.module())(state, batch), torch.cat(outputs), atol=1e-6)
