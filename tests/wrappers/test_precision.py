"""Precision: the bits of a hand-written loop with torch's autocast and GradScaler, whatever the scale does."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.step import NonFiniteLoss
from purerun.testing.snapshot import of_state
from purerun.wrappers import Wrapper

OPTIMIZERS = {
    "sgd": (pr.optim.SGD(lr=0.1, momentum=0.9), lambda params: torch.optim.SGD(params, 0.1, 0.9, fused=True)),
    "adamw": (pr.optim.AdamW(lr=0.01), lambda params: torch.optim.AdamW(params, 0.01, fused=True)),
}


def network():
    """Make a small network, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def loss(model, batch):
    """Compute a loss in float32 of what the model says, times what the batch says."""
    x, times = batch
    return model(x).float().square().mean() * times


def batches(count, *, every=0):
    """Make batches, of which some are large enough to overflow a scaled float16."""
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 4, generator=draw), 1e30 if every and place % every == every // 2 else 1.0)
        for place in range(count)
    ]


def same(model, state):
    """Say whether a module and a state hold the same bits."""
    return all(
        torch.equal(tensor, {**state["params"], **state["buffers"]}[name])
        for name, tensor in model.state_dict().items()
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"growth_interval": 7, "growth_factor": 4.0, "backoff_factor": 0.25}])
def test_a_dynamic_scale_is_that_of_a_grad_scaler(optimizer, options):
    """Hundreds of steps with planted overflows: each scale, parameter, buffer and growth counter has the same bits."""
    ours, theirs = OPTIMIZERS[optimizer]
    model = network()
    step = pr.wrap(pr.TrainStep(network(), loss, ours), pr.Precision("float16", **options))
    scaler, optim = torch.amp.GradScaler("cpu", **options), theirs(model.parameters())
    state, scales, overflows = step.init(), set(), 0
    for batch in batches(300, every=11):
        optim.zero_grad()
        with torch.autocast("cpu", torch.float16):
            value = loss(model, batch)
        scaler.scale(value).backward()
        scaler.unscale_(optim)
        before = scaler.get_scale()
        scaler.step(optim)
        scaler.update()
        state = step(state, batch)
        overflows += scaler.get_scale() < before
        scales.add(scaler.get_scale())

        assert scaler.get_scale() == state["precision", "scale"].item()
        assert scaler._get_growth_tracker() == int(state["precision", "growth_tracker"])
        assert torch.equal(value.detach(), state["metrics", "loss"])
        assert same(model, state)

    assert overflows > 1
    assert len(scales) > 1


def test_a_static_scale_stays():
    """As MMEngine's `loss_scale=512.0`: a GradScaler whose scale is set anew each time; no power of two here."""
    model, batch = network(), batches(20, every=5)
    step = pr.wrap(pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0]), pr.Precision("float16", scale=30000.0))
    scaler, optim = torch.amp.GradScaler("cpu", init_scale=30000.0), OPTIMIZERS["sgd"][1](model.parameters())
    state, skipped = step.init(), 0
    for each in batch:
        optim.zero_grad()
        with torch.autocast("cpu", torch.float16):
            value = loss(model, each)
        scaler.scale(value).backward()
        scaler.unscale_(optim)
        scaler.step(optim)
        scaler.update(30000.0)
        before, state = state, step(state, each)
        skipped += torch.equal(before["params", "0.weight"], state["params", "0.weight"])

        assert same(model, state)
        assert 30000.0 == state["metrics", "loss_scale"].item() == state["precision", "scale"].item()

    assert skipped > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bfloat16_has_no_scale(optimizer):
    """A hand-written loop under autocast, whose backward pass is outside of it, as torch wants it."""
    ours, theirs = OPTIMIZERS[optimizer]
    model = network()
    step = pr.wrap(pr.TrainStep(network(), loss, ours), pr.Precision())
    optim, state = theirs(model.parameters()), step.init()
    for batch in batches(50):
        optim.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, batch)
        value.backward()
        optim.step()
        state = step(state, batch)

        assert same(model, state)
    assert "precision" not in state.names()
    assert torch.float32 == state["params", "0.weight"].dtype


def windowed(count):
    """Make a hand-written loop of windows: one step and one change of the scale for each."""
    model = network()
    optim, scaler = OPTIMIZERS["sgd"][1](model.parameters()), torch.amp.GradScaler("cpu", growth_interval=3)

    def run(window):
        optim.zero_grad()
        for batch in window:
            with torch.autocast("cpu", torch.float16):
                value = loss(model, batch) / count
            scaler.scale(value).backward()
        scaler.unscale_(optim)
        scaler.step(optim)
        scaler.update()

    return model, scaler, run


def test_a_window_has_one_scale():
    """With Accumulate outside, as in torch's documentation: an overflow spoils its window, the scale changes once."""
    model, scaler, run = windowed(2)
    inner = pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0])
    step = pr.wrap(inner, pr.Precision("float16", growth_interval=3), pr.Accumulate(2))
    state, given = step.init(), batches(80, every=11)
    for place in range(0, 80, 2):
        run(given[place : place + 2])
        scale = state["precision", "scale"].item()
        state = step(state, given[place])
        assert scale == state["precision", "scale"].item()
        state = step(state, given[place + 1])

        assert scaler.get_scale() == state["precision", "scale"].item()
        torch.testing.assert_close(dict(model.named_parameters()), dict(state["params"].items()), rtol=1e-5, atol=1e-6)


def test_outside_of_a_window_an_overflow_is_not_added():
    """With Accumulate inside the window waits for good batches, and the scale goes by batches."""
    inner = pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0])
    step = pr.wrap(inner, pr.Accumulate(2), pr.Precision("float16"))
    plain = pr.wrap(inner, pr.Accumulate(2), pr.Precision("float16", scale=2.0**15))
    good, bad = (torch.ones(6, 4), 1.0), (torch.ones(6, 4), 1e9)
    state = step(step(step(step.init(), good), bad), good)
    expected = plain(plain(plain.init(), good), good)

    assert 2.0**15 == state["precision", "scale"].item()
    assert 0 == int(state["accumulate", "count"])
    for name, param in expected["params"].items():
        torch.testing.assert_close(param, state["params", name], rtol=1e-2, atol=1e-3)


def test_a_part_window_is_closed_by_its_own_scale():
    """At the end of a loop the window's gradients are checked like those of a full one."""
    inner = pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0])
    step = pr.wrap(inner, pr.Precision("float16"), pr.Accumulate(2))
    begun = step(step.init(), (torch.ones(6, 4), 1e9))
    state = step.finish(begun)

    assert 2.0**16 == begun["precision", "scale"].item()
    assert 2.0**15 == state["precision", "scale"].item()
    assert torch.equal(begun["params", "0.weight"], state["params", "0.weight"])


def test_an_infinite_loss_is_an_overflow():
    """The scale goes down and nothing else moves; without a scale it is refused as ever."""
    inner, infinite = pr.TrainStep(network(), loss, OPTIMIZERS["adamw"][0]), (torch.ones(6, 4), float("inf"))
    step, bare = pr.wrap(inner, pr.Precision("float16")), pr.wrap(inner, pr.Precision("bfloat16"))
    state = step.init()
    after = step(state, infinite)

    assert float("inf") == after["metrics", "loss"].item()
    assert 2.0**15 == after["precision", "scale"].item()
    assert of_state(state.select("params", "optim")) == of_state(after.select("params", "optim"))
    with pytest.raises(NonFiniteLoss):
        bare(bare.init(), infinite)


def test_an_infinite_loss_with_good_gradients_is_one_too():
    """Its gradients say nothing of it."""

    def shifted(model, batch):
        return model(batch[0]).float().square().mean() + batch[1]

    plain = pr.TrainStep(nn.Linear(4, 1), shifted, pr.optim.SGD(lr=0.1))
    step = pr.wrap(plain, pr.Precision("float16", init_scale=8.0))
    state = step(step.init(), (torch.ones(2, 4), float("inf")))

    assert (4.0, 1) == (state["precision", "scale"].item(), state["precision", "total"].item())
    assert of_state(step.init().select("params")) == of_state(state.select("params"))


@pytest.mark.parametrize("lease", [False, True])
@pytest.mark.parametrize("options", [{}, {"scale": 4.0}], ids=["dynamic", "static"])
def test_a_run_whose_every_update_is_left_out_stops(lease, options):
    """No scale is small enough; the state before is whole, and what was left out is reported."""
    step = pr.wrap(
        pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0]), pr.Precision("float16", limit=4, **options)
    )  # fmt: skip
    given = [(torch.ones(6, 4), times) for times in (1.0, float("inf"), 1.0, *[float("nan")] * 9)]
    kept, reports = step.init(), []
    with pytest.raises(NonFiniteLoss, match=r"but 4 updates in a row had none.*No loss scale can help here"):
        for state in pr.TrainLoop(step, iters=12, lease=lease)(step.init(), given):
            reports.append((state["metrics", "skipped"].item(), state["metrics", "skipped_in_a_row"].item()))
            kept = state.hold()

    first = 0 if options else reports[0][0]  # the first scale may be too large
    assert int(kept["iter"]) == 6
    assert reports[-1] == (4 + first, 3)
    assert all(param.isfinite().all() for param in kept["params"].values())


def test_a_batch_that_is_no_number_leaves_the_buffers_as_they_were():
    """The mean of a BatchNorm would be NaN for ever, and only the evaluated model would show it."""
    step = pr.wrap(pr.TrainStep(network(), loss, OPTIMIZERS["sgd"][0]), pr.Precision("float16", init_scale=8.0))
    state = step(step.init(), (torch.ones(6, 4), 1.0))
    after = step(state, (torch.full((6, 4), float("nan")), 1.0))

    assert of_state(state.select("params", "buffers")) == of_state(after.select("params", "buffers"))
    assert 1 == int(after["precision", "total"])


@pytest.mark.parametrize("window", [1, 2])
def test_a_warm_up_is_no_reason_to_stop(window):
    """A scale that begins far too large finds its way down, inside of a window too."""
    plain = pr.TrainStep(nn.Linear(4, 1), lambda model, x: model(x).float().square().mean(), pr.optim.SGD(lr=0.1))
    step = pr.wrap(plain, pr.Precision("float16", init_scale=2.0**40, limit=32), pr.Accumulate(window))
    state = step.init()
    for _ in range(80):
        state = step(state, torch.ones(2, 4))

    assert 20 < int(state["precision", "total"]) < 32
    assert int(state["precision", "row"]) == 0
    assert not torch.equal(state["params", "weight"], step.init()["params", "weight"])


def test_the_scale_follows_a_dtype_that_is_changed():
    """By the command line, say: float16 without a scale is only what is asked for."""
    changed = attrs.evolve(pr.Precision("bfloat16"), dtype="float16")

    assert changed == pr.Precision("float16")
    assert changed.kind == "Precision with a scale"
    assert attrs.evolve(pr.Precision("float16"), dtype="bfloat16").kind == "Precision"
    assert pr.Precision("float16", scale=None).kind == "Precision"


def test_the_user_s_own_autocast_is_respected():
    """A part of the loss in float32 gives what the same loss gives by hand; the backward pass of it is float32, too."""
    seen = []

    def careful(model, x):
        hidden = model[0](x)
        with torch.autocast("cpu", enabled=False):
            seen.append((hidden.dtype, model[1](hidden.float()).dtype))
            return model[1](hidden.float()).square().mean()

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        value = careful(model, x)
    expected = torch.autograd.grad(value, [*model.parameters()])
    step = pr.wrap(pr.TrainStep(model, careful, pr.optim.SGD(lr=0.1)), pr.Precision())
    grads = step.grad(step.init(), x)

    assert {(torch.bfloat16, torch.float32)} == set(seen)
    for name, grad in zip(grads.grads, expected, strict=True):
        assert torch.equal(grad, grads.grads[name])


def test_gradients_that_share_memory_are_divided_once():
    """The backward pass of a sum makes one tensor for two parameters, or one element for all of a gradient."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.ones(3)) for _ in range(3))

        def forward(self, x):
            return ((self.a + self.b) * x).sum() + self.c.sum()

    x = torch.tensor([1.0, 2.0, 3.0])
    step = pr.wrap(pr.TrainStep(Sum(), lambda m, x: m(x), pr.optim.SGD(lr=0.1)), pr.Precision("float16", scale=1024.0))
    grads = step.grad(step.init(), x).grads

    assert [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]] == [grads[name].tolist() for name in "abc"]


def test_the_scale_s_own_gradient():
    """A parameter that is the loss has the scale for its gradient: dividing it must not change the scale."""
    step = pr.TrainStep(nn.ParameterDict({"w": torch.ones(())}), lambda m, _: m["w"], pr.optim.SGD(lr=0.5))
    step = pr.wrap(step, pr.Precision("float16"))
    state = step(step.init(), torch.ones(1))

    assert (0.5, 2.0**16) == (state["params", "w"].item(), state["precision", "scale"].item())


@attrs.frozen
class Tripled(Wrapper):
    """A wrapper that scales the loss itself."""

    def read(self, step, draft, batch, how):
        scale = torch.tensor(3.0) if how.scale is None else how.scale * 3
        return step.read(draft, batch, attrs.evolve(how, scale=scale))


def test_a_scale_of_somebody_else_stays():
    """Only one's own is divided by."""
    inner = pr.TrainStep(nn.Linear(2, 1), lambda m, x: m(x).float().sum(), pr.optim.SGD())
    for step in (
        pr.wrap(inner, Tripled(), pr.Precision("float16", scale=8.0)),
        pr.wrap(inner, pr.Precision("float16", scale=8.0), Tripled()),
    ):
        assert [[6.0, 3.0]] == step.grad(step.init(), torch.tensor([[2.0, 1.0]])).grads["weight"].tolist()


def test_both_engines_read_under_autocast():
    """And divide by the scale."""
    batch = batches(1)[0]
    found = []
    for engine in ("autograd", "func"):
        step = pr.wrap(
            pr.TrainStep(network(), loss, pr.optim.SGD(), engine=engine), pr.Precision("float16", scale=256.0)
        )
        found.append(step.grad(step.init(), batch).grads)

    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_validation_under_the_same_autocast():
    """`precision=` of the steps that look."""
    model, x = network(), torch.randn(3, 4)
    state = pr.TrainStep(model, loss, pr.optim.SGD()).init()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network().eval()(x)
    actual = pr.PredictStep(model, precision=pr.Precision("bfloat16"))(state, (x,))
    val_step = pr.ValStep(model, metrics={"mae": pr.metrics.MeanAbsoluteError()}, precision=pr.Precision("bfloat16"))
    tallies = val_step(state, val_step.init(), (x, torch.zeros(3, 1)))

    assert torch.bfloat16 == actual.dtype
    assert torch.equal(expected, actual)
    assert expected.float().abs().mean().item() == pytest.approx(val_step.compute(tallies)["mae"].item(), rel=1e-6)
    with pytest.raises(TypeError, match=r"expected precision=pr.Precision\('bfloat16'\)"):
        pr.PredictStep(model, precision="bfloat16")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float32"}, "`dtype` should be 'bfloat16' or 'float16'"),
        ({"scale": "dynamic"}, "`scale` should be left out, because bfloat16 has the range"),
        ({"dtype": "float16", "scale": 0.0}, "`scale` should be a number greater than 0"),
        ({"dtype": "float16", "init_scale": "a"}, "`init_scale` should be a number greater than 0, but it is 'a'"),
        ({"dtype": "float16", "growth_factor": 1.0}, "`growth_factor` should be a number greater than 1"),
        ({"dtype": "float16", "backoff_factor": 1.0}, "`backoff_factor` should be a number between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    """When it is made."""
    with pytest.raises(ValueError, match=said):
        pr.Precision(**options)


def test_steps_that_cannot_be_scaled_are_refused():
    """A line search, and parameters whose gradients would vanish in the division."""
    lbfgs = pr.TrainStep(nn.Linear(2, 1), lambda m, x: m(x).mean(), pr.optim.Torch(torch.optim.LBFGS))
    half = pr.TrainStep(nn.Linear(2, 1).half(), lambda m, x: m(x).mean(), pr.optim.SGD())
    with pytest.raises(ValueError, match="searches along a line"):
        pr.wrap(lbfgs, pr.Precision("float16"))
    with pytest.raises(ValueError, match="expected float32 parameters under a loss scale"):
        pr.wrap(half, pr.Precision("float16")).init()


@pytest.mark.cuda
def test_a_dynamic_scale_on_an_accelerator():
    """The scale of a GradScaler there, and steps that do not wait for the device."""
    model = network().cuda()
    step = pr.wrap(
        pr.TrainStep(network().cuda(), loss, pr.optim.SGD(lr=0.1)), pr.Precision("float16", growth_interval=7)
    )
    scaler, optim = (
        torch.amp.GradScaler("cuda", growth_interval=7),
        torch.optim.SGD(model.parameters(), 0.1, fused=True),
    )
    state = step.init()
    for x, times in batches(60, every=11):
        optim.zero_grad()
        with torch.autocast("cuda", torch.float16):
            value = loss(model, (x.cuda(), times))
        scaler.scale(value).backward()
        scaler.unscale_(optim)
        scaler.step(optim)
        scaler.update()
        x = x.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            state = step(state, (x, times))
        finally:
            torch.cuda.set_sync_debug_mode("default")

        assert scaler.get_scale() == state["precision", "scale"].item()
        torch.testing.assert_close(dict(model.named_parameters()), dict(state["params"].items()))
