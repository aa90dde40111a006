"""Rooms together: hooks, wrappers and loops over one run."""

from __future__ import annotations

import gc
import multiprocessing
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import purerun as pr
from purerun.hooks import Every, ReduceOnPlateau
from purerun.state import missing
from purerun.testing import check_resume, counted, rebuilt


def linear(**options):
    """Make a small step (as in test_loop.py)."""
    torch.manual_seed(0)
    return pr.TrainStep(nn.Linear(1, 1), lambda model, b: model(b[0]).square().mean(), pr.optim.SGD(lr=0.1), **options)


def data(samples, **options):
    """Make a loader whose samples are numbered (as in test_loop.py)."""
    return pr.Loader(pr.data.Tensors(torch.arange(samples).float().unsqueeze(1)), **options)


# ---- tests/hooks/test_when.py: a row more for test_intervals_may_change: (5, [(11, 3)], [5, 12, 15, 18])
def test_a_change_can_skip_the_check_before_it():
    """The new interval rules at 10 already, and 10 is no multiple of 3."""
    assert [5, 12, 15, 18] == [n for n in range(1, 21) if Every(5, changes=[(11, 3)])(counted(epoch=n))]


# ---- tests/hooks/test_plateau.py
@pytest.mark.parametrize(("floor", "end"), [(0.0, 0.005), (0.01, 0.01)], ids=["no floor", "floor"])
@pytest.mark.parametrize(("threshold", "kind"), [(0.01, "rel"), (0.9, "abs")], ids=["relative", "absolute"])
@pytest.mark.parametrize(
    ("rule", "values"),
    [("less", [10, 9, 8, 7, *[6] * 6]), ("greater", [1, 2, 3, 4, *[5] * 6])],
    ids=["less", "greater"],
)
def test_it_is_mmengine_s_scheduler(rule, values, threshold, kind, floor, end):
    """Its table: eight checks at the first rate, two at the lowered one; saved and loaded before any of them."""
    hook = ReduceOnPlateau(
        "loss", rule=rule, patience=2, cooldown=1, threshold=threshold, threshold_rule=kind, min_value=floor
    )
    for cut in range(len(values)):
        state = counted(epoch=1, hyper={"lr": 0.05})
        state = state.replace(missing(hook.slots(state), state))
        rates = []
        for count, value in enumerate(values):
            state = rebuilt(state) if count == cut else state
            rates.append(state["hyper", "lr"].item())
            state = hook(state.replace(scores={"loss": float(value)}))

        assert [0.05] * 8 + [end] * 2 == pytest.approx(rates)


# ---- tests/wrappers/test_accumulate.py
@pytest.mark.parametrize(
    ("by", "milestone", "limit"), [("iter", 3, {"iters": 3}), ("epoch", 1, {"epochs": 1})], ids=["iter", "epoch"]
)
def test_a_part_window_moves_by_the_last_iteration_s_rate(by, milestone, limit):
    """A rate that falls to zero behind the loop's end does not lose the window."""
    plain = linear(schedule=[pr.schedule.MultiStep([milestone], gamma=0.0, by=by)])
    step, x = pr.wrap(plain, pr.Accumulate(2)), torch.arange(6.0).unsqueeze(1)
    states = list(pr.TrainLoop(step, **limit)(step.init(), data(6, batch_size=2)))
    expected = linear()(plain.init().replace(params=states[1]["params"]), (x[4:],))

    assert torch.equal(expected["params", "weight"], states[2]["params", "weight"])


# ---- tests/wrappers/test_ema.py
def test_an_average_goes_on():
    """Stopped anywhere."""
    step = pr.wrap(linear(), pr.EMA(0.9))

    check_resume(pr.TrainLoop(step, epochs=2), step.init(), data(7, batch_size=2, shuffle=True))


# ---- tests/test_loop.py
@pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
def test_the_first_state_is_not_kept(lease):
    """When its caller drops it, it is gone while the loop runs."""
    step = linear()
    start = step.init()
    seen = weakref.ref(start)
    run = pr.TrainLoop(step, iters=5, lease=lease)(start, data(8, batch_size=2))
    del start
    next(run), next(run)
    gc.collect()

    assert seen() is None


def test_lent_states_are_the_same_numbers():
    """Under a lease and as values, with windows and averages."""
    step, loader = pr.wrap(linear(), pr.Accumulate(2), pr.EMA(0.9)), data(7, batch_size=2, shuffle=True)
    values, lent = (
        [pr.digest(each) for each in pr.TrainLoop(step, epochs=3, lease=lease)(step.init(1), loader)]
        for lease in (False, True)
    )

    assert values == lent


def test_plain_loaders_are_read():
    """A list of batches and PyTorch's own loader give what a `Loader` gives."""
    step, x = linear(), torch.arange(6.0).unsqueeze(1)
    loaders = [data(6, batch_size=2), [(part,) for part in x.split(2)], DataLoader(TensorDataset(x), batch_size=2)]
    runs = [
        [each["params", "weight"].item() for each in pr.TrainLoop(step, epochs=2)(step.init(), loader)]
        for loader in loaders
    ]

    assert 6 == len(runs[0])
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    ("order", "last"),
    [
        (pr.data.Infinite(pr.data.Shuffle()), (8, 0, 24)),
        (pr.data.Weighted([1.0, 2.0, 3.0, 0.0, 1.0, 1.0, 1.0]), (8, 2, 6)),
        (pr.data.Weighted([1.0, 2.0, 3.0, 0.0, 1.0, 1.0, 1.0], num_samples=5, replacement=False), (8, 4, 0)),
    ],
    ids=["endless", "weighted", "without replacement"],
)
def test_any_order_goes_on(order, last):
    """From each of its states, as if it had not been left; an endless one stays in its epoch."""
    step, loader = linear(), data(7, batch_size=3, order=order)
    whole = list(pr.TrainLoop(step, iters=8)(step.init(4), loader))
    digests = [pr.digest(each) for each in whole]
    for count, state in enumerate(whole, 1):
        assert digests[count:] == [pr.digest(each) for each in pr.TrainLoop(step, iters=8)(state, loader)]

    assert last == tuple(int(whole[-1][name]) for name in ("iter", "epoch", "cursor"))


def test_a_loop_left_early_stops_its_workers():
    """No process is left behind."""
    before = len(multiprocessing.active_children())
    step = linear()
    loader = pr.Loader(TensorDataset(torch.arange(8.0).unsqueeze(1)), batch_size=2, workers=1)
    run = pr.TrainLoop(step, epochs=2)(step.init(), loader)
    next(run)
    during = len(multiprocessing.active_children())
    run.close()

    assert (before + 1, before) == (during, len(multiprocessing.active_children()))
