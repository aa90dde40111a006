"""Loops of the user's own: a few lines each, with everything else still working."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import purerun as pr


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 4, generator=generator)
    labels = torch.randint(3, (20,), generator=generator)
    return pr.Loader(pr.data.Tensors(image=images, label=labels), batch_size=8, shuffle=True)


@pytest.fixture
def step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
    return pr.TrainStep(
        model,
        lambda model, batch: F.cross_entropy(model(batch["image"]), batch["label"]),
        pr.optim.SGD(lr=0.1, momentum=0.9),
    )


class Gan(nn.Module):
    """A generator and a critic that share a state."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(2, 4)
        self.critic = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def critic_loss(models, batch):
    fake = models.generator(torch.randn(len(batch["image"]), 2)).detach()
    return F.softplus(-models.critic(batch["image"])).mean() + F.softplus(models.critic(fake)).mean()


def generator_loss(models, batch):
    fake = models.generator(torch.randn(len(batch["image"]), 2))
    return F.softplus(-models.critic(fake)).mean()


@pytest.fixture
def gan():
    torch.manual_seed(0)
    models = Gan()
    d_step = pr.TrainStep(models, critic_loss, pr.optim.SGD(lr=0.05), name="critic", params="critic.*")
    g_step = pr.TrainStep(models, generator_loss, pr.optim.SGD(lr=0.01), name="generator", params="generator.*")
    return d_step, g_step


def test_a_hand_written_loop_over_seek_is_the_packaged_loop(step, loader):
    """Stepping and advancing over what `seek` reads gives the states that `TrainLoop` yields."""
    packaged = [pr.digest(state) for state in pr.TrainLoop(step, epochs=2)(step.init(seed=0), loader)]

    state, by_hand = step.init(seed=0), []
    while int(state["epoch"]) < 2:
        for batch in loader.seek(state):
            state = loader.advance(step(state, batch))
            by_hand.append(pr.digest(state))

    assert packaged == by_hand


def test_each_batch_twice_counts_two_iterations_a_batch(step, loader):
    """A loop takes any function from state and batch to state."""
    loop = pr.TrainLoop(lambda state, batch: step(step(state, batch), batch), steps=[step], epochs=2)

    places = [(int(s["iter"]), int(s["epoch"]), int(s["cursor"])) for s in loop(step.init(seed=0), loader)]

    assert [(2, 0, 8), (4, 0, 16), (6, 1, 0), (8, 1, 8), (10, 1, 16), (12, 2, 0)] == places


def test_alternating_steps_share_a_state(gan, loader):
    """Two named steps move their own parameters only, each with its own optimizer."""
    d_step, g_step = gan
    state = pr.init(0, d_step, g_step)

    after_d = d_step(state, {"image": torch.ones(8, 4)})
    after_g = g_step(after_d, {"image": torch.ones(8, 4)})

    moved = {leaf.path.split("/")[1].split(".")[0] for leaf in pr.diff(state, after_d) if "params" in leaf.path}
    assert {"critic"} == moved
    moved = {leaf.path.split("/")[1].split(".")[0] for leaf in pr.diff(after_d, after_g) if "params" in leaf.path}
    assert {"generator"} == moved
    assert {"critic", "generator"} == set(state["hyper"].names())


@pytest.mark.parametrize("lease", [False, True])
def test_an_alternation_resumes_at_every_step(gan, loader, lease):
    """A GAN written as a plain function is as resumable as a single step."""
    d_step, g_step = gan
    loop = pr.TrainLoop(
        lambda state, batch: g_step(d_step(state, batch), batch), steps=[d_step, g_step], epochs=2, lease=lease
    )
    whole, kept = [], []
    for state in loop(pr.init(0, d_step, g_step), loader):
        whole.append(pr.digest(state))
        kept.append(state.hold())

    for k, state in enumerate(kept):
        assert whole[k + 1 :] == [pr.digest(later) for later in loop(state, loader)]


def test_steps_without_names_cannot_share_a_state(step):
    """Two steps that want the same slot are told to take names."""
    other = pr.TrainStep(step.model, step.loss, pr.optim.SGD(lr=0.2, momentum=0.9))

    with pytest.raises(pr.StateError, match="expected a name"):
        pr.init(0, step, other)


def test_a_line_search_takes_the_best_of_several_updates(step):
    """The two halves are public: one gradient, several updates, one is taken."""
    batch = {"image": torch.ones(8, 4), "label": torch.zeros(8, dtype=torch.int64)}
    state = step.init(seed=0)
    before = pr.digest(state)

    grads = step.grad(state, batch)
    tries = [step.update(state.replace(hyper={"lr": lr}), grads) for lr in (0.001, 0.01, 0.1, 1.0)]
    losses = [float(step.grad(each, batch).metrics["loss"]) for each in tries]

    assert min(losses) < float(grads.metrics["loss"])
    assert before == pr.digest(state)
    assert pr.digest(step(state, batch)) == pr.digest(step.update(state, step.grad(state, batch)))


def test_a_loop_is_changed_by_making_another_state(step, loader):
    """Break, replace, start again: the new learning rate holds from there on."""
    for state in pr.TrainLoop(step, epochs=2)(step.init(seed=0), loader):
        if int(state["iter"]) == 2:
            break
    rates = [float(s["metrics", "lr"]) for s in pr.TrainLoop(step, epochs=1)(state.replace(hyper={"lr": 0.01}), loader)]

    assert [0.01] == rates
