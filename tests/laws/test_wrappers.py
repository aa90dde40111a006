"""Every law on every wrapper and every order of two of them; and what composing them means."""

from __future__ import annotations

from functools import partial
from itertools import permutations

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.testing import Case, check_everything, check_values_equal_lease
from purerun.wrappers import orders

WRAPPERS = {
    "accumulate": pr.Accumulate(2),
    "accumulate 4": pr.Accumulate(4),
    "accumulate epoch": pr.Accumulate(2, window="epoch", schedule="update"),
    "clip norm": pr.Clip(norm=0.1),
    "clip value": pr.Clip(value=0.01),
    "clip adaptive": pr.Clip(adaptive=0.02),
    "annealed": pr.AnnealedEMA(0.9, gamma=2, interval=2),
    "data": pr.DataParallel(shards=2),
    "dropout": pr.Dropout(0.3),
    "ema": pr.EMA(0.9, buffers="average"),
    "microbatch": pr.Microbatch(2, on_oom="halve"),
    "precision float16": pr.Precision("float16", init_scale=2.0**18, growth_interval=2),
    "precision bfloat16": pr.Precision("bfloat16"),
    "remat": pr.Remat("0"),
    "skip": pr.SkipNonFinite(),
    "swa": pr.SWA(interval=2),
}
KINDS = {wrapper.kind: wrapper for wrapper in reversed(WRAPPERS.values())}
"""The first of each kind stands in pairs; all stand alone."""
ORDERS = {
    **{name: (wrapper,) for name, wrapper in WRAPPERS.items()},
    **{
        f"{a} in {b}": (KINDS[a], KINDS[b])
        for a, b in permutations(KINDS, 2)
        if orders.reason(KINDS[a].kind, KINDS[b].kind) is None
    },
}
OPTIMIZERS = {
    "sgd": pr.optim.SGD(lr=0.1, momentum=0.9),
    "adamw": pr.optim.AdamW(lr=0.01),
    "any": pr.optim.Torch(torch.optim.Rprop, lr=0.01),
}
SCHEDULE = [pr.schedule.Linear(0.1, end=4, by="iter"), pr.schedule.MultiStep([1], by="epoch")]


@pytest.mark.parametrize("wrappers", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("limit", [{"epochs": 2}, {"iters": 5}], ids=["epochs", "iters"])
def test_every_law_holds_on_every_order_of_wrappers(make_run, tmp_path, wrappers, limit):
    """Windows cross epochs, and end in the middle; resume in the middle of a window too."""
    # 24 samples: a shard or a part of one sample has no variance.
    run = make_run("batch norm", OPTIMIZERS["sgd"], *wrappers, samples=24, step={"schedule": SCHEDULE}, **limit)

    check_everything(run.loop, run.state, run.loader, again=run.again, sinks=partial(watched, tmp_path))


def watched(folder, states):
    """Log each iteration, and save some."""
    log = pr.sinks.Log("1 iters", folder / "log.jsonl", console=False)
    return pr.watch(states, log, pr.sinks.Checkpoint(folder, every="2 iters"), overwrite=True)


NORMS = Case("norms", lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)))
PLAIN = Case("plain", lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)))
OTHERS = {wrapper.kind: wrapper for wrapper in (pr.Masters(), pr.Vmap(2), pr.Compile())}
"""Kinds that ask something of the model or the engine, or take a compiler."""
MIXED = [
    pytest.param(a, b, id=f"{a} in {b}", marks=[pytest.mark.slow] if "Compile" in (a, b) else [])
    for a, b in permutations([*KINDS, *OTHERS], 2)
    if {a, b} & set(OTHERS) and orders.reason(a, b) is None
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("inner", "outer"), MIXED)
def test_every_law_holds_on_wrappers_that_ask_for_more(make_run, inner, outer):
    """A model of 16 bits under masters, the functional engine in a sweep, a compiler (by option)."""
    names = {inner, outer}
    # torch 2.13 has no normalisation under both a map and an autocast on the CPU.
    plain = names == {"Precision", "Vmap"}
    case = (
        attrs.evolve(NORMS, make=lambda: NORMS.make().bfloat16()) if "Masters" in names else PLAIN if plain else NORMS
    )
    step = {"schedule": SCHEDULE, "engine": "func" if "Vmap" in names else "autograd"}
    loss = halved if "Masters" in names else None
    wrappers = [(KINDS | OTHERS)[name] for name in (inner, outer)]
    run = make_run(case, OPTIMIZERS["adamw"], *wrappers, samples=24, loss=loss, step=step, iters=4)

    check_everything(run.loop, run.state, run.loader, again=run.again)


def test_each_kind_of_the_table_of_orders_stands_before_the_laws():
    """Adding a wrapper is adding a row here."""
    assert set(orders.PLACES) == set(KINDS | OTHERS)


def test_each_pair_that_the_table_allows_stands_before_the_laws():
    """Those with a compiler only by option."""
    tried = {(inner.kind, outer.kind) for inner, outer in (pair for pair in ORDERS.values() if len(pair) == 2)}
    tried |= {param.values for param in MIXED}
    allowed = {(a, b) for a in orders.PLACES for b in orders.PLACES if a != b and orders.reason(a, b) is None}

    assert allowed == tried


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["grad", "step"])
def test_every_law_holds_on_compiled_steps(make_run, what):
    """Each resume is a step that is compiled anew."""
    run = make_run("batch norm", OPTIMIZERS["sgd"], pr.Compile(what), pr.EMA(0.9), step={"schedule": SCHEDULE}, iters=5)

    check_everything(run.loop, run.state, run.loader, again=run.again)


def spoiled(model, batch):
    """Compute a loss that is infinite for some batches, so that what stands around it leaves their updates out."""
    loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
    return loss * torch.where(batch["y"].sum() % 2 == 0, 1.0, torch.inf)


SKIPPING = {"skip": pr.SkipNonFinite(limit=30), "precision": pr.Precision("float16", growth_interval=1)}


@pytest.mark.parametrize("skipping", SKIPPING.values(), ids=SKIPPING)
@pytest.mark.parametrize("place", range(3))
def test_every_law_holds_where_updates_are_left_out(make_run, skipping, place):
    """Inside of a window, outside of it, and around everything."""
    wrappers = [pr.Accumulate(2), pr.EMA(0.9)]
    wrappers.insert(place, skipping)
    run = make_run("batch norm", OPTIMIZERS["adamw"], *wrappers, loss=spoiled, samples=40, epochs=2)
    slot, name = ("skip", "total") if skipping is SKIPPING["skip"] else ("precision", "scale")
    counts = {state[slot, name].item() for state in run.loop(run.state, run.loader)}

    assert len(counts) > 1
    check_everything(run.loop, run.state, run.loader, again=run.again)


HALF = Case("half", lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).bfloat16())


@pytest.mark.parametrize("wrappers", [(), (pr.Accumulate(2),), (pr.EMA(0.9),)], ids=["alone", "accumulate", "ema"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_every_law_holds_on_masters(make_run, wrappers, inside):
    """Of a model in bfloat16."""
    order = (pr.Masters(), *wrappers) if inside else (*wrappers, pr.Masters())
    run = make_run(HALF, OPTIMIZERS["adamw"], *order, loss=halved, epochs=2)

    check_everything(run.loop, run.state, run.loader, again=run.again)


def halved(model, batch):
    """Compute the loss of a model that takes bfloat16."""
    return nn.functional.cross_entropy(model(batch["x"].bfloat16()).float(), batch["y"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_law_holds_on_wrapped_optimizers(make_run, optimizer):
    """Two wrappers around optimizers of each kind."""
    run = make_run("dropout", optimizer, pr.Accumulate(2), pr.EMA(0.5), iters=5)

    check_everything(run.loop, run.state, run.loader, again=run.again)


def test_values_equal_lease_over_many_epochs(make_run):
    """A longer run with everything on."""
    run = make_run(
        "batch norm", OPTIMIZERS["adamw"], pr.Accumulate(4), pr.EMA(0.9), step={"schedule": SCHEDULE}, epochs=9
    )

    check_values_equal_lease(run.loop, run.state, run.loader)


def test_slots_are_named_and_independent(make_run):
    """Each wrapper has one slot of its own, and leaves those of its neighbours alone."""
    plain, wrapped = make_run(epochs=1), make_run("dropout", OPTIMIZERS["sgd"], pr.EMA(0.9), epochs=1)
    first, second = (list(run.loop(run.state, run.loader))[-1] for run in (plain, wrapped))

    assert {"ema"} == set(second.names()) - set(first.names())
    assert pr.digest(first) == pr.digest(second.exclude("ema"))


def test_a_linear_model_accumulates_to_the_big_batch():
    """Unequal batches, weighted by their samples: one window is one step on all of them."""
    x = torch.randn(11, 3, dtype=torch.float64)
    step = pr.TrainStep(nn.Linear(3, 1).double(), lambda model, b: model(b).square().mean(), pr.optim.SGD(lr=0.1))
    big = step(step.init(0), x)
    wrapped = pr.wrap(step, pr.Accumulate(3))
    state = wrapped.init(0)
    for part in x.split([2, 5, 4]):
        state = wrapped(state, part)

    for name, param in big["params"].items():
        assert torch.allclose(param, state["params", name], rtol=1e-12, atol=1e-14)
