"""SkipNonFinite: the bits of a hand-written loop with an `if`, and an end after so many in a row."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.step import NonFiniteLoss
from purerun.testing.snapshot import of_state
from purerun.wrappers import Wrapper, finite

NAN, INF = float("nan"), float("inf")
OPTIMIZERS = {
    "sgd": (pr.optim.SGD(lr=0.1, momentum=0.9), lambda params: torch.optim.SGD(params, 0.1, 0.9, fused=True)),
    "adamw": (pr.optim.AdamW(lr=0.01), lambda params: torch.optim.AdamW(params, 0.01, fused=True)),
    "any": (pr.optim.Torch(torch.optim.Rprop, lr=0.01), lambda params: torch.optim.Rprop(params, 0.01)),
}


def network():
    """Make a small network with buffers, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def loss(model, x):
    """Compute a mean over samples."""
    return model(x).square().mean()


def make(optimizer="sgd", *wrappers, limit=3, model=None, **options):
    """Make a step that skips."""
    step = pr.TrainStep(model or network(), loss, OPTIMIZERS[optimizer][0], **options)
    return pr.wrap(step, *wrappers, pr.SkipNonFinite(limit=limit))


def batches(count, bad=()):
    """Make batches, those at some places spoiled."""
    draw = torch.Generator().manual_seed(1)
    made = [torch.randn(6, 4, generator=draw) for _ in range(count)]
    for place, value in bad:
        made[place][0, 0] = value
    return made


BAD = [(2, NAN), (3, INF), (6, NAN), (7, -INF), (9, NAN)]


@pytest.fixture
def accelerated(monkeypatch):
    """Skip by choosing each tensor, as on an accelerator."""
    asked = []
    for module in ("finite", "streak"):
        monkeypatch.setattr(f"purerun.wrappers.{module}.decides", lambda flag, module=module: asked.append(module))
    yield
    assert {"finite", "streak"} <= set(asked)


@pytest.fixture(params=["decided", "chosen"])
def way(request):
    """Skip as on the CPU, or as on an accelerator."""
    if request.param == "chosen":
        request.getfixturevalue("accelerated")
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bad_steps_are_left_out(optimizer):
    """Parameters, buffers, slots: the bits of a loop that goes back to a copy where a gradient is bad."""
    model = network()
    optim = OPTIMIZERS[optimizer][1](model.parameters())
    step = make(optimizer)
    state, total, row = step.init(), 0, 0
    for place, x in enumerate(batches(12, BAD)):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optim.zero_grad()
        loss(model, x).backward()
        if all(param.grad.isfinite().all() for param in model.parameters()):
            optim.step()
            row = 0
        else:
            model.load_state_dict(before)
            total, row = total + 1, row + 1
        last, state = state, step(state, x)

        assert all(
            torch.equal(tensor, {**state["params"], **state["buffers"]}[name])
            for name, tensor in model.state_dict().items()
        )
        assert (total, row) == (int(state["skip", "total"]), int(state["skip", "row"]))
        assert (total, row) == (int(state["metrics", "skipped"]), int(state["metrics", "skipped_in_a_row"]))
        assert place + 1 == int(state["iter"])
        if row:
            assert of_state(last.select("params", "buffers", "optim", "hyper")) == of_state(
                state.select("params", "buffers", "optim", "hyper")
            )
    assert len(BAD) == total


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "wrappers", [(pr.Accumulate(2),), (pr.EMA(0.5),), (pr.Clip(norm=0.1),), (pr.Accumulate(2), pr.EMA(0.5))], ids=str
)
def test_everything_inside_stays(wrappers):
    """The run is that of the good batches alone, but for the counts."""
    step = make("adamw", *wrappers)
    given = batches(12, BAD)
    fine = [x for place, x in enumerate(given) if place not in dict(BAD)]
    state, expected = step.init(), step.init()
    for x in given:
        state = step(state, x)
    for x in fine:
        expected = step(expected, x)

    names = [name for name in state.names() if name not in ("iter", "skip", "metrics")]
    assert pr.digest(expected.select(*names)) == pr.digest(state.select(*names))


@pytest.mark.usefixtures("way")
def test_values_equal_lease():
    """Skipping in a leased state."""
    given = batches(12, BAD)
    ends = [
        [
            state.hold()
            for state in pr.TrainLoop(make("adamw", pr.EMA(0.5)), iters=12, lease=lease)(
                make("adamw", pr.EMA(0.5)).init(), given
            )
        ]
        for lease in (False, True)
    ]

    assert [pr.digest(state) for state in ends[0]] == [pr.digest(state) for state in ends[1]]


def test_a_bad_batch_spoils_its_window():
    """With Accumulate outside, the window that it falls into is left out; the buffers of its good batches count."""
    step = pr.wrap(pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0]), pr.SkipNonFinite(), pr.Accumulate(2))
    states = [step.init()]
    for x in batches(4, [(1, NAN)]):
        states.append(step(states[-1], x))

    assert of_state(states[0].select("params", "optim")) == of_state(states[2].select("params", "optim"))
    assert of_state(states[1].select("buffers")) == of_state(states[2].select("buffers"))
    assert [0, 0, 1, 1, 1] == [int(state["skip", "total"]) for state in states]
    assert not torch.equal(states[3]["params", "0.weight"], states[4]["params", "0.weight"])


@pytest.mark.parametrize(
    ("outer", "accelerator"),
    [(pr.SkipNonFinite(), False), (pr.SkipNonFinite(), True), (pr.Precision("float16", init_scale=1.0), False)],
    ids=["skip", "skip on an accelerator", "precision"],
)
def test_a_window_ends_with_its_epoch_though_its_last_batch_is_bad(request, outer, accelerator):
    """The good batches are applied, without the bad one; the next window begins with the next epoch."""
    if accelerator:
        request.getfixturevalue("accelerated")

    def shifted(model, batch):
        return (model(batch[0]) * batch[1]).float().square().mean()

    plain = pr.TrainStep(nn.Linear(4, 1), shifted, pr.optim.SGD(lr=0.1))
    step = pr.wrap(plain, pr.Accumulate(4, window="epoch"), outer)
    given = [(x, 1.0) for x in batches(2)] + [(batches(1)[0], NAN)]
    states = list(pr.TrainLoop(step, epochs=2)(step.init(), given))
    short = pr.wrap(plain, *([outer] if isinstance(outer, pr.Precision) else []), pr.Accumulate(2))
    expected = short(short(short.init(), given[0]), given[1])

    assert [1, 2, 0, 1, 2, 0] == [int(state["accumulate", "count"]) for state in states]
    torch.testing.assert_close(states[2]["params", "weight"], expected["params", "weight"], rtol=1e-3, atol=1e-5)


def test_a_bad_loss_with_good_gradients():
    """Is left out too, alone and in a window that began with it."""

    def shifted(model, batch):
        return model(batch[0]).square().mean() + batch[1]

    plain = pr.TrainStep(nn.Linear(4, 1), shifted, pr.optim.SGD(lr=0.1))
    fine, bad = (torch.ones(2, 4), 0.0), (torch.ones(2, 4), NAN)
    alone, window = pr.wrap(plain, pr.SkipNonFinite()), pr.wrap(plain, pr.SkipNonFinite(), pr.Accumulate(2))
    first = alone(alone.init(), bad)
    second = window(window(window.init(), bad), fine)

    assert (1, 1) == (int(first["skip", "total"]), int(second["skip", "total"]))
    assert torch.equal(alone.init()["params", "weight"], second["params", "weight"])


def test_the_gradients_are_named_where_the_loss_is_fine():
    """With the terms beside them."""

    def loss(model, x):
        value = model(x).mean()
        return {"loss": value, "snr": torch.tensor(NAN)}

    class Bad(Wrapper):
        def read(self, step, draft, batch, how):
            grads = step.read(draft, batch, how)
            return attrs.evolve(grads, grads={name: grad * torch.inf for name, grad in grads.grads.items()})

    step = pr.wrap(pr.TrainStep(nn.Linear(4, 1), loss, pr.optim.SGD(lr=0.1)), Bad(), pr.SkipNonFinite(1))
    with pytest.raises(NonFiniteLoss, match=r"the gradients of `weight`, `bias` \(beside snr=nan\) are not"):
        step(step.init(), torch.ones(2, 4))


@pytest.mark.parametrize("lease", [False, True])
def test_a_run_stops_after_so_many_in_a_row(lease):
    """Before anything is written, with the state before it whole."""
    step, given = make(limit=3), batches(8, [(1, NAN), (3, NAN), (4, INF), (5, NAN)])
    states, kept = [], None
    with pytest.raises(NonFiniteLoss, match=r"but 3 updates in a row had none; this time the loss \(loss=nan\) is not"):
        for state in pr.TrainLoop(step, iters=8, lease=lease)(step.init(), given):
            states.append(state.hold())
            kept = state

    assert 5 == int(states[-1]["iter"]) == int(kept["iter"])
    assert (3, 2) == (int(kept["skip", "total"]), int(kept["skip", "row"]))
    assert pr.digest(states[2]["params"]) == pr.digest(kept["params"])


def test_the_bad_gradients_are_named():
    """And no others."""

    def partly(model, x):
        return model[0](x).square().mean() + (model[1].weight.sum() - model[1].weight.sum()).sqrt()

    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1, bias=False))
    step = pr.wrap(pr.TrainStep(model, partly, pr.optim.SGD()), pr.SkipNonFinite(limit=1))
    with pytest.raises(NonFiniteLoss, match=r"this time the gradients of `1.weight` are not\."):
        step(step.init(), torch.ones(1, 2))


@pytest.mark.usefixtures("accelerated")
def test_an_accelerator_is_asked_every_so_often():
    """Where looking would wait: in iterations that are multiples of the limit, so within twice the limit."""
    step, given = make(limit=4), batches(12, [(place, NAN) for place in range(2, 12)])
    state = step.init()
    with pytest.raises(NonFiniteLoss, match="but 6 updates in a row"):
        for x in given:
            state = step(state, x)

    assert 7 == int(state["iter"])


@pytest.mark.usefixtures("accelerated")
def test_a_row_that_is_over_when_an_accelerator_is_asked_still_counts():
    """It began after one look and ended before the next."""
    step, given = make(limit=4), batches(12, [(place, NAN) for place in range(5, 11)])
    state = step.init()
    with pytest.raises(NonFiniteLoss, match="but 6 updates in a row had none; this time all are again"):
        for x in given:
            state = step(state, x)


@pytest.mark.parametrize("accelerator", [False, True])
def test_a_row_that_is_over_and_was_allowed_stops_nobody_later(request, accelerator):
    """A smaller limit is for the rows to come."""
    if accelerator:
        request.getfixturevalue("accelerated")
    patient = make(limit=8)
    state = patient.init()
    for x in batches(8, [(place, NAN) for place in range(2, 7)]):
        state = patient(state, x)
    strict = make(limit=4)
    state = strict.adopt(state)
    for x in batches(8, [(place, NAN) for place in (1, 2, 5)]):
        state = strict(state, x)

    assert (8, 0) == tuple(int(state["skip", name]) for name in ("total", "row"))


@pytest.mark.usefixtures("accelerated")
def test_only_what_was_written_is_chosen(monkeypatch):
    """Counters of the run, and parameters that are not trained, are left alone; the count of SGD is the update's."""
    chosen = []
    monkeypatch.setattr("purerun.wrappers.finite.choose", lambda bad, old, new: chosen.append(new) or new)
    step = make(limit=100, params="3.*")
    state = step(step.init(), batches(1)[0])

    written = [
        *(state["params", f"3.{name}"] for name in ("weight", "bias")),
        *dict(pr.state.leaves(state["optim"])).values(),
    ]
    assert 5 == len(written)
    written += state["buffers"].values()  # by the forward pass
    assert {id(tensor) for tensor in written} == {id(tensor) for tensor in chosen}


@attrs.frozen
class Spoiling(Wrapper):
    """A wrapper that makes gradients bad on their way into the update."""

    def write(self, step, draft, grads):
        step.write(draft, attrs.evolve(grads, grads={name: grad / 0 for name, grad in grads.grads.items()}))


def test_gradients_that_go_bad_outside_are_left_out():
    """What counts is what comes to the update."""
    step = pr.wrap(pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0]), pr.SkipNonFinite(limit=5), Spoiling())
    state = step(step.init(), batches(1)[0])

    assert 1 == int(state["skip", "total"])
    assert pr.digest(step.init()["params"]) == pr.digest(state["params"])


def test_what_is_kept_of_shards_is_that_of_good_batches():
    """Buffers of a data-parallel step that has several sets of them."""
    inner = pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0])
    step = pr.wrap(inner, pr.DataParallel(2, buffers="shard"), pr.SkipNonFinite())
    fine, bad = batches(2, [(1, NAN)])
    before = step(step.init(), fine)
    after = step(before, bad)
    names = [name for name in before.names() if name not in ("iter", "skip", "metrics")]

    assert pr.digest(before.select(*names)) == pr.digest(after.select(*names))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_any_bad_element_is_found(dtype, value):
    """In any tensor, of any dtype; large numbers are fine."""
    large = torch.full((3, 2), 6e4, dtype=dtype)
    good = {"a": large, "b": torch.ones(5), "c": torch.zeros(0), "d": torch.ones(1).expand(4)}
    bad = large.clone()
    bad[1, 1] = value

    assert not finite.nonfinite(good)
    assert finite.nonfinite({**good, "e": bad})
    assert finite.nonfinite({"e": bad, **good})
    assert (6e4, 1.0) == (pytest.approx(large.real.max().item(), rel=1e-2), good["d"].max().item())


def test_largest_numbers_are_finite():
    """No sum or square overflows on the way."""
    assert not finite.nonfinite({"a": torch.full((1000,), torch.finfo(torch.float32).max)})


@pytest.mark.parametrize("limit", [0, -1, 1.5])
def test_a_limit_is_at_least_one(limit):
    """Others are refused when they are made."""
    with pytest.raises(ValueError, match="`limit` should be a whole number of at least 1"):
        pr.SkipNonFinite(limit=limit)


def test_a_line_search_is_refused():
    """It would look at losses that are not seen from outside."""
    step = pr.TrainStep(nn.Linear(2, 1), loss, pr.optim.Torch(torch.optim.LBFGS))
    with pytest.raises(ValueError, match="searches along a line"):
        pr.wrap(step, pr.SkipNonFinite())


def test_reports_keep_their_names():
    """In iterations that update, that are left out, and in a window that is open."""
    step = pr.wrap(make(), pr.Accumulate(2))
    state, names = step.init(), set()
    for x in batches(4, [(1, NAN)]):
        state = step(state, x)
        names.add(tuple(sorted(state["metrics"].keys())))

    assert {("loss", "lr", "skipped", "skipped_in_a_row")} == names
    assert not math.isnan(state["metrics", "loss"].item())


@pytest.mark.parametrize("wrapper", [pr.SkipNonFinite(), pr.Precision("float16"), pr.Masters()], ids=str)
def test_what_decides_for_one_run_is_not_mapped_over(wrapper):
    """A sweep of it is refused; one under a plain autocast is not."""
    step = pr.TrainStep(nn.Linear(4, 1).bfloat16(), loss, pr.optim.SGD(), engine="func")
    assert not pr.wrap(step, wrapper).mappable
    assert pr.wrap(step, pr.Precision("bfloat16"), pr.Clip(norm=1.0)).mappable


@pytest.mark.cuda
def test_an_accelerator_is_not_waited_for():
    """The same states as on the CPU but for rounding, and no step waits."""
    ours = network().cuda()
    step, host = (pr.wrap(make("adamw", limit=100, model=each), pr.EMA(0.5)) for each in (ours, network()))
    state, expected = step.init(), host.init()
    for x in batches(12, BAD):
        expected = host(expected, x)
        x = x.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            state = step(state, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")

        assert int(expected["skip", "total"]) == int(state["skip", "total"])
    for name, param in expected["params"].items():
        torch.testing.assert_close(param, state["params", name].cpu(), rtol=1e-3, atol=1e-4)
