"""The MAML recipe: its inner steps are the optimizer's, and what it learns is to learn."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss

import purerun as pr
from purerun import recipe as room
from purerun.recipe import load, override, text

RECIPE = Path(__file__).parent.parent.parent / "recipes" / "maml.py"


@pytest.fixture(scope="module")
def recipe():
    """The recipe."""
    return load(RECIPE)


def test_it_resolves_to_its_golden_text(recipe):
    """Whatever changes a value of the recipe shows in a diff of `maml.toml`."""
    assert RECIPE.parent.parent.joinpath("tests", "recipe", "maml.toml").read_text() == text(recipe)


def test_the_inner_steps_are_torch_s(recipe):
    """Answers after five steps are those of five steps of `torch.optim.SGD` on each curve."""
    model, batch = recipe.module(), recipe.test.dataset.tensors().rows(torch.arange(4))
    answers = recipe.forward(model, batch)
    for place in range(4):
        alone = copy.deepcopy(model)
        optimizer = torch.optim.SGD(alone.parameters(), lr=0.02)
        for _ in range(5):
            optimizer.zero_grad()
            mse_loss(alone(batch["x"][place]), batch["y"][place]).backward()
            optimizer.step()

        torch.testing.assert_close(answers[place], alone(batch["query"][place]), rtol=1e-4, atol=1e-5)


def test_the_outer_gradient_is_that_through_unrolled_steps(recipe):
    """The loss of one curve has the derivative by the first weights that `pr.unroll` over a step has."""
    model = recipe.module()
    batch = recipe.train.dataset.tensors().rows(torch.arange(1))
    outer = pr.TrainStep(model, recipe.loss, recipe.optimizer)
    inner = pr.TrainStep(
        model, lambda model, batch: mse_loss(model(batch[0]), batch[1]), pr.optim.SGD(lr=0.02), engine="func"
    )
    state = inner.init()

    def after(params):
        adapted = pr.unroll(inner, state.replace(params=params), [(batch["x"], batch["y"])] * 5)
        return pr.loss_at(inner, adapted, (batch["query"], batch["answer"]))

    expected = torch.func.grad(after)(dict(state["params"].items()))

    torch.testing.assert_close(outer.grad(outer.init(), batch).grads, expected, rtol=1e-4, atol=1e-5)


def errors(recipe, folder, *settings):
    """Train with learning to learn and without; give the errors after the same five steps."""
    found = []
    for steps in (5, 0):
        changed = override(recipe, [f"loss.steps={steps}", *settings])
        found.append(float(room.test(changed, room.train(changed, folder / str(steps)).state)["error"]))
    return found


def test_learning_to_learn_pays(recipe, tmp_path):
    """With an eighth of the data the error is at least 5 times smaller than that of plain training, adapted alike."""
    maml, plain = errors(recipe, tmp_path, "train.dataset.curves=2500")

    assert maml < plain / 5


@pytest.mark.slow
def test_learning_to_learn_pays_tenfold(recipe, tmp_path):
    """With all data, at least 10 times."""
    maml, plain = errors(recipe, tmp_path)

    assert maml < plain / 10
