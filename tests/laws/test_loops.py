"""Every law on whole runs: hooks, schedules, sinks, checkpoints, and loops of one's own functions."""

from __future__ import annotations

import threading

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.hooks import Every, ReduceOnPlateau, Validate
from purerun.testing import check_everything, check_purity, check_resume, check_sinks_change_nothing, saved

SCHEDULES = {
    "warm-up and steps": [pr.schedule.Linear(0.1, end=4, by="iter"), pr.schedule.MultiStep([1], by="epoch")],
    "cosine": [pr.schedule.Cosine(period=6, by="iter")],
    "one cycle": [pr.schedule.OneCycle(0.5, period=8, by="iter")],
    "two of two": [
        pr.schedule.Exponential(0.9, by="iter"),
        pr.schedule.Linear(0.5, end=3, by="iter", param="momentum"),
    ],
}


def validate(run, **options):
    """Make a validation hook on the run's own data."""
    model = run.loop.step.model
    judge = pr.ValLoop(pr.ValStep(model, metrics={"accuracy": pr.metrics.Accuracy()}))
    return Validate(judge, run.loader, **options)


def with_hooks(run, *hooks):
    """Give hooks to a run, and to its copies."""

    def again():
        loop, loader = run.again()
        return attrs.evolve(loop, hooks=hooks), loader

    return attrs.evolve(run, loop=attrs.evolve(run.loop, hooks=hooks), again=again)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("limit", [{"epochs": 2}, {"iters": 7}], ids=["epochs", "iters"])
def test_every_law_holds_under_schedules(make_run, schedule, limit):
    """They are functions of the counters, so there is nothing to restore."""
    run = make_run(step={"schedule": schedule}, **limit)

    check_everything(run.loop, run.state, run.loader, again=run.again)


@pytest.mark.parametrize(
    "every", ["1 epoch", "2 iters", "last", Every(1, "iter", begin=3)], ids=["epoch", "iters", "last", "late"]
)
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_every_law_holds_with_validation(make_run, every, before):
    """Scores are part of the state: nothing is judged twice or left out after a resume."""
    run = make_run("batch norm", epochs=2)
    run = with_hooks(run, validate(run, every=every, before=before))

    check_everything(run.loop, run.state, run.loader, again=run.again)


def test_every_law_holds_when_the_rate_falls_on_plateaus(make_run):
    """What the hook remembers is a slot; what it changes is the hyper-parameter."""
    run = make_run("batch norm", pr.optim.SGD(lr=1.0), epochs=3)
    plateau = ReduceOnPlateau("accuracy", rule="greater", patience=0, factor=0.5, every="2 iters")
    run = with_hooks(run, validate(run, every="2 iters"), plateau)
    states = list(run.loop(run.state, run.loader))
    check_everything(run.loop, run.state, run.loader, again=run.again)

    assert float(states[-1]["hyper", "lr"]) < 1.0


def test_every_law_holds_through_checkpoints(make_run, tmp_path):
    """With everything on, each state written to a disk and read back."""
    step = {"schedule": SCHEDULES["warm-up and steps"]}
    run = make_run("batch norm", pr.optim.AdamW(lr=0.01), pr.Accumulate(2), pr.EMA(0.9), step=step, epochs=2)
    run = with_hooks(run, attrs.evolve(validate(make_run("batch norm"))))

    check_everything(run.loop, run.state, run.loader, again=run.again, through=saved(tmp_path / "checkpoint"))


def test_random_resumes_of_a_longer_run(make_run):
    """Twenty epochs, stopped at four places."""
    run = make_run("batch norm", pr.optim.AdamW(lr=0.01), pr.Accumulate(4), pr.EMA(0.9), epochs=20)

    check_resume(run.loop, run.state, run.loader, at=4, again=run.again)


@pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
def test_sinks_change_nothing(make_run, tmp_path, lease):
    """A log, checkpoints and a function of the user's own watch a run."""
    run = make_run(epochs=2, lease=lease)
    seen = []

    def noting(states):
        for state in states:
            seen.append(float(state["params"]["0.0.weight"].sum()))
            yield state

    folders = iter(range(9))

    def watching(states):
        folder = tmp_path / str(next(folders))
        sinks = (pr.sinks.Log(every=2, path=folder / "log.jsonl"), pr.sinks.Checkpoint(folder, every="1 epoch"), noting)
        return pr.watch(states, *sinks)

    check_sinks_change_nothing(run.loop, run.state, run.loader, watching)
    assert 12 == len(seen)


def test_every_law_holds_on_an_alternation():
    """A critic and a generator, one state, and the user's own plain function."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.critic = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 1))
            self.maker = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def critic_loss(model, batch):
        fake = model.maker(torch.randn(len(batch[0]), 2)).detach()
        return model.critic(fake).mean() - model.critic(batch[0]).mean() + model.critic(fake).square().mean()

    def maker_loss(model, batch):
        return -model.critic(model.maker(torch.randn(len(batch[0]), 2))).mean()

    def make(seed):
        torch.manual_seed(seed)
        model = Pair()
        critic = pr.TrainStep(model, critic_loss, pr.optim.AdamW(lr=0.01), name="critic", params="critic.*")
        maker = pr.TrainStep(model, maker_loss, pr.optim.SGD(lr=0.01, momentum=0.5), name="maker", params="maker.*")

        def alternate(state, batch):
            state = critic(critic(state, batch), batch)
            return maker(state, batch)

        loop = pr.TrainLoop(alternate, steps=(critic, maker), epochs=2)
        return loop, pr.Loader(pr.data.Tensors(torch.arange(24.0).reshape(12, 2).sin()), batch_size=4, shuffle=True)

    loop, loader = make(0)
    state = pr.init(3, *loop.steps)
    check_everything(loop, state, loader, again=lambda: make(1))
    states = list(loop(state, loader))

    assert [3, 6, 9, 12, 15, 18] == [int(each["iter"]) for each in states]
    assert {"critic", "maker"} == set(states[-1]["optim"].names())


def test_every_law_holds_on_sharpness_aware_steps(make_run):
    """A step written with the two halves: the gradient is taken at a worse place."""
    run = make_run("batch norm", epochs=1)
    inner = run.loop.step

    def step(state, batch):
        grads = inner.grad(state, batch).grads
        norm = torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()
        uphill = {name: state["params", name] + 0.05 * grad / norm for name, grad in grads.items()}
        return inner.update(state, inner.grad(state.replace(params=uphill), batch))

    loop = pr.TrainLoop(step, steps=(inner,), epochs=2)
    check_everything(loop, run.state, run.loader)


def test_each_batch_twice(make_run):
    """The counter counts calls of the step; the position counts samples."""
    run = make_run(epochs=1)
    inner = run.loop.step
    loop = pr.TrainLoop(lambda state, batch: inner(inner(state, batch), batch), steps=(inner,), epochs=1)
    states = list(loop(run.state, run.loader))
    check_resume(loop, run.state, run.loader)

    assert [(2, 0, 8), (4, 0, 16), (6, 1, 0)] == [
        tuple(int(each[name]) for name in ("iter", "epoch", "cursor")) for each in states
    ]


def test_the_learning_rate_finder_changes_nothing(make_run):
    """Looking at hypothetical steps leaves no trace."""
    run = make_run("batch norm")
    batch, _ = next(iter(run.loader.read(3, 0, 0)))
    before = pr.digest(run.state)
    losses = {}
    for rate in (1e-3, 1e-2, 1e-1, 1.0):
        tried = run.loop.step(run.state.replace(hyper={"lr": rate}), batch)
        losses[rate] = float(run.loop.step.grad(tried, batch).metrics["loss"])

    assert before == pr.digest(run.state)
    assert 4 == len(set(losses.values()))
    check_purity(run.loop.step, run.state, batch)


def test_autocast_around_a_loop(make_run):
    """The casts of one iteration are not used for the next, and not kept: a lease that nobody looks at tells."""
    run = make_run("tanh", epochs=3)
    with torch.autocast("cpu", torch.bfloat16):
        check_everything(run.loop, run.state, run.loader, again=run.again)


@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_global_settings_around_a_loop_do_not_matter(make_run):
    """Grad mode, the default dtype, anomaly detection and deterministic algorithms: the same bits."""
    run = make_run("batch norm", pr.optim.AdamW(lr=0.01), pr.Accumulate(2), pr.EMA(0.9), epochs=2)

    def digests():
        return [pr.digest(state) for state in run.loop(run.state, run.loader)]

    expected = digests()
    with torch.no_grad():
        assert expected == digests()
    torch.set_default_dtype(torch.float64)
    try:
        assert expected == digests()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(mode=True)
    try:
        assert expected == digests()
    finally:
        torch.use_deterministic_algorithms(mode=False)


def test_the_default_device_does_not_matter(make_run):
    """Counters, hyper-parameters, slots and indices are made where they belong."""
    schedule = SCHEDULES["warm-up and steps"]
    run = make_run("batch norm", pr.optim.AdamW(lr=0.01), pr.Accumulate(2), pr.EMA(0.9), step={"schedule": schedule})
    plateau = ReduceOnPlateau("accuracy", rule="greater", patience=0)
    run = with_hooks(run, attrs.evolve(validate(make_run("batch norm"))), plateau)

    def digests():
        return [pr.digest(state) for state in run.loop(run.loop.step.init(3), run.loader)]

    expected = digests()
    with torch.device("meta"):
        given = digests()

    assert expected == given


def test_a_held_state_can_be_looked_at_by_another_thread(make_run):
    """While the run goes on and writes in place, nothing tears."""
    run = make_run("batch norm", pr.optim.AdamW(lr=0.01), pr.EMA(0.9), epochs=30, lease=True)
    seen, stop, held = [], threading.Event(), [run.state]

    def looking():
        while not stop.is_set():
            state = held[-1]
            seen.append((pr.digest(state), pr.digest(state)))

    watcher = threading.Thread(target=looking)
    watcher.start()
    for state in run.loop(run.state, run.loader):
        held.append(state.hold())  # noqa: PERF401 - the other thread reads it on the way
    stop.set()
    watcher.join()
    again = [pr.digest(state) for state in run.loop(run.state, run.loader)]

    assert again == [pr.digest(state) for state in held[1:]]
    assert {a for a, _ in seen} <= {pr.digest(run.state), *again}
    assert all(a == b for a, b in seen)
