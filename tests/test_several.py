"""Several models and optimizers in one state: what hand-written loops do, bit for bit, and as resumable as one step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import purerun as pr
from purerun.data import Position
from purerun.testing import check_everything, check_resume, check_values_equal_lease


def net(inputs, outputs, *last):
    """Make a small network."""
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs), *last)


def gan():
    """Make a generator with buffers, and a critic."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return nn.ModuleDict({"generator": generator, "critic": net(2, 1)})


def critic_loss(models, batch):
    fake = models["generator"](batch["noise"]).detach()
    return F.softplus(-models["critic"](batch["real"])).mean() + F.softplus(models["critic"](fake)).mean()


def generator_loss(models, batch):
    return F.softplus(-models["critic"](models["generator"](batch["noise"]))).mean()


def batches(count=4, samples=8):
    """Draw points and noise."""
    generator = torch.Generator().manual_seed(1)
    return [{name: torch.randn(samples, 2, generator=generator) for name in ("real", "noise")} for _ in range(count)]


OPTIMIZERS = {
    "sgd": (
        pr.optim.SGD(lr=0.1, momentum=0.9),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
    ),
    "adam": (
        pr.optim.Adam(lr=0.01, betas=(0.5, 0.9)),
        lambda params: torch.optim.Adam(params, lr=0.01, betas=(0.5, 0.9), fused=True),
    ),
}


def pair(models=None, ours=OPTIMIZERS["adam"][0], **options):
    """Make the two steps of a GAN."""
    models = models or gan()
    return (
        pr.TrainStep(models, critic_loss, ours, name="critic", params="critic.*", **options),
        pr.TrainStep(models, generator_loss, ours, name="generator", params="generator.*", **options),
    )


def alternating(d_step, g_step, ratio=1):
    """Make the user's own plain function."""

    def step(state, batch):
        for _ in range(ratio):
            state = d_step(state, batch)
        return g_step(state, batch)

    return step


def same(module, state):
    """Say whether a module has a state's parameters and buffers, bit for bit."""
    tensors = [("params", *each) for each in module.named_parameters()]
    tensors += [("buffers", *each) for each in module.named_buffers()]
    return all(torch.equal(value, state[part][name]) for part, name, value in tensors)


def by_hand(loss, optimizer, models, batch):
    """Make one step as everybody writes it."""
    models.zero_grad()
    loss(models, batch).backward()
    optimizer.step()


@pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_gan_is_the_hand_written_one(ours, theirs, ratio, lease):
    """Twenty alternations, with one or three steps of the critic."""
    models = gan()
    hand, steps = copy.deepcopy(models), pair(models, ours)
    d_optimizer, g_optimizer = theirs(hand["critic"].parameters()), theirs(hand["generator"].parameters())
    loop = pr.TrainLoop(alternating(*steps, ratio), steps=steps, epochs=5, lease=lease)
    done = 0
    for state in loop(pr.init(0, *steps), batches()):
        batch = batches()[done % 4]
        done += 1
        for _ in range(ratio):
            by_hand(critic_loss, d_optimizer, hand, batch)
        by_hand(generator_loss, g_optimizer, hand, batch)

        assert same(hand, state)
        assert {"critic.loss", "critic.lr", "generator.loss", "generator.lr"} == set(state["metrics"].keys())

    assert (20, 20 * (ratio + 1)) == (done, int(state["iter"]))


def test_a_student_learns_from_a_frozen_teacher():
    """The teacher is in the state, and stays as it is; only the student is trained."""
    torch.manual_seed(0)
    models = nn.ModuleDict({"teacher": net(4, 3).requires_grad_(False), "student": nn.Linear(4, 3)})

    def loss(models, x):
        return F.kl_div(models["student"](x).log_softmax(-1), models["teacher"](x).softmax(-1), reduction="batchmean")

    hand, step = copy.deepcopy(models), pr.TrainStep(models, loss, pr.optim.Adam(lr=0.05))
    optimizer = torch.optim.Adam(hand["student"].parameters(), lr=0.05, fused=True)
    state, x = step.init(0), torch.randn(6, 4)
    start = state
    for _ in range(20):
        state = step(state, x)
        by_hand(loss, optimizer, hand, x)

        assert same(hand, state)

    assert ("student.weight", "student.bias") == step.trained
    assert torch.equal(start["params", "teacher.0.weight"], state["params", "teacher.0.weight"])
    assert state["metrics", "loss"] < 0.5 * step(start, x)["metrics", "loss"]


def actor_critic():
    """Make two heads on one trunk."""
    torch.manual_seed(0)
    return nn.ModuleDict({"trunk": nn.Linear(4, 8), "actor": nn.Linear(8, 3), "critic": nn.Linear(8, 1)})


def policy_loss(models, batch):
    hidden = models["trunk"](batch["seen"]).tanh()
    advantage = (batch["gain"] - models["critic"](hidden)[:, 0]).detach()
    chosen = models["actor"](hidden).log_softmax(-1).gather(1, batch["done"].unsqueeze(1))[:, 0]
    return -(chosen * advantage).mean()


def value_loss(models, batch):
    return (models["critic"](models["trunk"](batch["seen"]).tanh())[:, 0] - batch["gain"]).square().mean()


def test_an_actor_and_a_critic_share_a_trunk():
    """Both steps move it, each with an optimizer of its own: two of torch's, bit for bit."""
    models = actor_critic()
    hand, rates = copy.deepcopy(models), {"actor": 0.01, "critic": 0.03}
    losses = {"actor": policy_loss, "critic": value_loss}
    steps, optimizers = {}, {}
    for name, lr in rates.items():
        steps[name] = pr.TrainStep(
            models, losses[name], pr.optim.Adam(lr=lr), name=name, params=("trunk.*", f"{name}.*")
        )
        optimizers[name] = torch.optim.Adam([*hand["trunk"].parameters(), *hand[name].parameters()], lr=lr, fused=True)
    batch = {"seen": torch.randn(7, 4), "gain": torch.randn(7), "done": torch.randint(3, (7,))}
    state = pr.init(0, *steps.values())
    for _ in range(20):
        for name in ("critic", "actor"):
            state = steps[name](state, batch)
            by_hand(losses[name], optimizers[name], hand, batch)

        assert same(hand, state)


WRAPPERS = {
    "one": ((pr.Accumulate(2), pr.EMA(0.9)), ()),
    "both": ((pr.Accumulate(2), pr.EMA(0.9)), (pr.EMA(0.5), pr.Accumulate(3, schedule="update"))),
    "parts": ((pr.Microbatch(2, on_oom="halve"),), (pr.Microbatch(3, on_oom="halve"), pr.EMA(0.5))),
}


def wrapped(wrappers, models=None):
    """Make both steps with their wrappers and a schedule."""
    schedule = [pr.schedule.Linear(0.1, end=4, by="iter")]
    return [pr.wrap(step, *each) for step, each in zip(pair(models, schedule=schedule), wrappers, strict=True)]


@pytest.mark.parametrize(
    ("wrappers", "limit"), [("one", {"epochs": 2}), ("both", {"iters": 10}), ("parts", {"epochs": 1})]
)
def test_every_law_holds_on_wrapped_alternations(wrappers, limit):
    """Two wrappers of a kind around two steps, windows that are open at a checkpoint and at the end."""

    def make():
        steps = wrapped(WRAPPERS[wrappers])
        return pr.TrainLoop(alternating(*steps, ratio=2), steps=steps, **limit), batches(3)

    loop, loader = make()
    check_everything(loop, pr.init(1, *loop.steps), loader, again=make)


def test_each_step_has_its_own_part_of_a_slot():
    """As alone, but under its name: two states of a GAN's steps agree with those of the steps that stand alone."""
    steps = wrapped(WRAPPERS["both"])
    state = pr.init(0, *steps)

    assert {"critic", "generator"} == set(state["ema"].keys()) == set(state["accumulate"].keys())
    assert {"generator.0.weight", "critic.0.weight"}.isdisjoint(
        set(state["ema", "critic", "params"].keys()) & set(state["ema", "generator", "params"].keys())
    )

    alone = pr.wrap(pr.TrainStep(gan(), critic_loss, OPTIMIZERS["adam"][0], params="critic.*"), *WRAPPERS["both"][0])
    lone, named = alone.init(0), state
    d_step = pr.wrap(pair()[0], *WRAPPERS["both"][0])
    for batch in batches():
        lone, named = alone(lone, batch), d_step(named, batch)

    for slot in ("ema", "accumulate"):
        assert pr.digest(lone[slot]) == pr.digest(named[slot, "critic"])
        assert pr.digest(state[slot, "generator"]) == pr.digest(named[slot, "generator"])


def test_an_average_of_one_of_several_is_judged_by_its_path():
    """`ema/generator` names it; what it does not average is the state's own."""
    models = gan()
    steps = wrapped(WRAPPERS["both"], models)
    state = pr.init(0, *steps)
    for batch in batches():
        state = alternating(*steps)(state, batch)
    average = pr.PredictStep(models, lambda models, x: models["generator"](x), weights="ema/generator")
    hand = copy.deepcopy(models)
    hand.load_state_dict(
        {**state["params"], **state["ema", "generator", "params"], **state["ema", "generator", "buffers"]}
    )
    x = torch.randn(5, 2)

    with torch.no_grad():
        assert torch.equal(hand.eval()["generator"](x), average(state, x))
    with pytest.raises(pr.StateError, match="ema/critic/x"):
        pr.PredictStep(models, weights="ema/critic/x")(state, x)


def test_one_kind_of_wrapper_still_stands_once_around_a_step():
    """Also around a step with a name."""
    with pytest.raises(ValueError, match="wrap once with it"):
        pr.wrap(pair()[0], pr.EMA(0.9), pr.EMA(0.5))


def test_an_error_in_the_second_step_loses_nothing():
    """The loop's last state is whole, as a value and leased, though the first step is done."""
    d_step, g_step = pair()
    for lease in (False, True):
        broken = pr.TrainStep(gan(), lambda models, batch: 1 / 0, pr.optim.SGD(lr=0.1), name="generator")
        calls = []

        def step(state, batch, broken=broken, calls=calls):
            calls.append(1)
            state = d_step(state, batch)
            return (broken if len(calls) == 3 else g_step)(state, batch)

        run = pr.TrainLoop(step, steps=[d_step, g_step], epochs=1, lease=lease)(pr.init(0, d_step, g_step), batches())
        states = [next(run), next(run)]
        before = pr.digest(states[-1])
        with pytest.raises(ZeroDivisionError):
            next(run)

        assert before == pr.digest(states[-1])
        assert (4, 0, 16) == tuple(int(states[-1][name]) for name in ("iter", "epoch", "cursor"))


def test_a_sequence_of_phases_is_a_sequence_of_loops():
    """Pretrain the critic, then alternate: each loop goes on from the state of the last."""
    d_step, g_step = pair()
    state = pr.init(0, d_step, g_step)
    *_, state = pr.TrainLoop(d_step, steps=[d_step, g_step], epochs=1)(state, batches())
    check_resume(pr.TrainLoop(alternating(d_step, g_step), steps=[d_step, g_step], epochs=3), state, batches())
    check_values_equal_lease(
        pr.TrainLoop(alternating(d_step, g_step), steps=[d_step, g_step], epochs=3), state, batches()
    )
    assert Position(1, 0) == Position(int(state["epoch"]), int(state["cursor"]))


def test_the_order_in_which_steps_are_named_means_nothing():
    """A state of both is the same one, and no loop warns of it."""
    critic, generator = pair()
    one, other = pr.init(0, critic, generator), pr.init(0, generator, critic)

    assert pr.digest(one) == pr.digest(other)
    for steps in ([critic, generator], [generator, critic]):
        loop = pr.TrainLoop(lambda state, batch: generator(critic(state, batch), batch), steps=steps, iters=4)
        ends = [list(loop(state, batches()))[-1] for state in (one, other)]
        assert pr.digest(ends[0]) == pr.digest(ends[1])
