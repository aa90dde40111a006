"""A sweep: each member does what it does alone, whatever the others do."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purerun as pr
from purerun.mapping import SweepError
from purerun.step import NonFiniteLoss
from purerun.testing import check_everything
from purerun.testing.optimizers import OPTIMIZERS
from purerun.wrappers.vmap import SameMembers
from tests.wrappers.sweeping import MEMBERS, RATES, SGD, Scales, batches, follow, gap, loss, make_step, mlp, same

TRACED = {name: case.optimizer for name, case in OPTIMIZERS.items() if case.traced}
SETTINGS = {"lr": RATES, "momentum": [0.9, 0.5, 0.0], "weight_decay": [0.0, 0.1, 0.01]}
WARM = pr.schedule.Linear(0.1, end=3, by="iter")
AROUND = {
    "accumulate": pr.Accumulate(2),
    "averages": pr.EMA(0.9),
    "microbatch": pr.Microbatch(2),
    "precision": pr.Precision("bfloat16"),
}
INSIDE = {
    # Norms are sums, taken in another order.
    "clip": (pr.Clip(norm=0.05), 1e-7),
    "dropout": (pr.Dropout(0.3), 0.0),
    "precision": (pr.Precision("bfloat16"), 0.0),
}


@pytest.mark.parametrize("optimizer", TRACED.values(), ids=TRACED)
def test_a_member_is_its_solo_run_bit_for_bit(optimizer):
    """Every optimizer that can be traced; each member has its own learning rate and its own dropout masks."""
    name = next(name for name in optimizer.hyper() if name.split(".")[-1] == "lr")
    scheduled = {"schedule": WARM} if name == "lr" else {}
    step = make_step(Scales(0.3), optimizer, **scheduled)
    sweep = pr.wrap(step, pr.Vmap(MEMBERS, hyper={name: RATES}))

    assert same(*follow(sweep, step, batches(4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("optimizer", [SGD, pr.optim.AdamW(lr=0.01)], ids=["sgd", "adamw"])
def test_products_of_matrices_follow_up_to_rounding(optimizer, dtype):
    """Batched products sum in another order than single ones."""
    step = make_step(mlp(nn.Dropout(0.3)).to(dtype), optimizer)
    sweep = pr.wrap(step, pr.Vmap(MEMBERS, hyper={"lr": RATES}))

    assert gap(*follow(sweep, step, batches(6, dtype))) < 100 * torch.finfo(dtype).eps


def test_settings_are_those_of_hand_written_loops():
    """Learning rate, momentum and weight decay at once, beside torch's own optimizer."""
    sweep = pr.wrap(make_step(mlp().double()), pr.Vmap(MEMBERS, hyper=SETTINGS, seeds="common"))
    state, expected = sweep.init(0), []
    for batch in batches(6, torch.float64):
        state = sweep(state, batch)
    for place in range(MEMBERS):
        model = mlp().double()
        optimizer = torch.optim.SGD(model.parameters(), **{name: values[place] for name, values in SETTINGS.items()})
        for batch in batches(6, torch.float64):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        expected.append(model.state_dict())

    for name, leaf in state["params"].items():
        torch.testing.assert_close(torch.stack([each[name] for each in expected]), leaf, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore::purerun.wrappers.vmap.SameMembers")
def test_batch_norm_has_statistics_for_each_member():
    """Running means and counts are batched, and follow."""
    step = make_step(mlp(nn.BatchNorm1d(17)).double())
    state, alone = follow(pr.wrap(step, pr.Vmap(MEMBERS)), step, batches(4, torch.float64))

    assert [4] * MEMBERS == state["buffers", "1.num_batches_tracked"].tolist()
    assert gap(state, alone) < 1e-13


def test_members_that_are_done_are_left_out():
    """The rest go on as if nothing had happened, in a smaller program."""
    step, seen = make_step(Scales(0.5)), batches(4)
    state, alone = follow(pr.wrap(step, pr.Vmap(4)), step, seen[:2])
    state, alone, sweep = pr.choose(state, [3, 1]), [alone[3], alone[1]], pr.wrap(step, pr.Vmap(2))
    for batch in seen[2:]:
        state, alone = sweep(state, batch), [step(each, batch) for each in alone]

    assert same(state, alone)


def test_hyper_parameters_are_read_from_the_state():
    """They may be changed between any two iterations, as in a single run."""
    sweep, (batch,) = pr.wrap(make_step(), pr.Vmap(2)), batches(1)
    state = sweep.init(0).replace(hyper={"lr": torch.tensor([0.5, 0.0], dtype=torch.float64)})
    after = sweep(state, batch)

    assert [0.5, 0.0] == after["metrics", "lr"].tolist()
    assert [False, True] == [
        torch.equal(*pair) for pair in zip(state["params", "weight"], after["params", "weight"], strict=True)
    ]


def test_seeds_are_successive_or_common():
    """`seed` says the order of the data, `seeds` each member's own chance."""
    own, common = (pr.wrap(make_step(), pr.Vmap(3, seeds=seeds)).init(7) for seeds in ("own", "common"))

    assert (7, [7, 8, 9]) == (int(own["seed"]), own["seeds"].tolist())
    assert (7, [7, 7, 7]) == (int(common["seed"]), common["seeds"].tolist())


@given(seed=st.integers(0, 2**40), members=st.integers(1, 4), left=st.integers(0, 3), rate=st.sampled_from([0.0, 0.5]))
@pytest.mark.filterwarnings("ignore::purerun.wrappers.vmap.SameMembers")
def test_a_member_goes_on_alone_from_any_iteration(seed, members, left, rate):
    """Taken out at any time, it does what it would have done inside."""
    step, seen = make_step(Scales(rate)), batches(3)
    sweep = pr.wrap(step, pr.Vmap(members))
    state = sweep.init(seed)
    for batch in seen[:left]:
        state = sweep(state, batch)
    alone = list(pr.unstack(state))
    for batch in seen[left:]:
        state, alone = sweep(state, batch), [step(each, batch) for each in alone]

    assert same(state, alone)


def test_runs_that_were_alone_become_a_sweep(tmp_path):
    """And the other way round: saved and loaded in between, and without a warning of another step."""
    step, seen = make_step(Scales(0.5)), batches(6)
    solo, sweep = pr.TrainLoop(step, iters=6), pr.TrainLoop(pr.wrap(step, pr.Vmap(2)), iters=4)
    expected = [pr.digest(list(solo(step.init(seed), seen))[-1]) for seed in (11, 3)]
    starts = [list(pr.TrainLoop(step, iters=2)(step.init(seed), seen))[-1] for seed in (11, 3)]
    pr.save(pr.stack(starts), tmp_path / "two")
    together = list(sweep(pr.load(tmp_path / "two"), seen))[-1]
    for place, member in enumerate(pr.unstack(together)):
        pr.save(member, tmp_path / str(place))

    assert expected == [pr.digest(list(solo(pr.load(tmp_path / place), seen))[-1]) for place in ("0", "1")]


@pytest.mark.parametrize("wrapper", AROUND.values(), ids=AROUND)
def test_what_treats_each_number_by_itself_stands_around(wrapper):
    """A wrapper around a sweep does to each member what it does around its step."""
    step = make_step(Scales(0.3) if wrapper is not AROUND["microbatch"] else None)
    sweep = pr.wrap(step, pr.Vmap(MEMBERS, hyper={"lr": RATES}), wrapper)

    assert same(*follow(sweep, pr.wrap(step, wrapper), batches(5)))


@pytest.mark.parametrize(("wrapper", "bound"), INSIDE.values(), ids=INSIDE)
def test_what_looks_at_all_numbers_of_a_run_stands_inside(wrapper, bound):
    """A norm is each member's own, and so is a probability."""
    step = pr.wrap(make_step(Scales(0.3)), wrapper)
    sweep = pr.wrap(step, pr.Vmap(MEMBERS, hyper={"lr": RATES}))

    assert gap(*follow(sweep, step, batches(4))) <= bound


def test_several_steps_share_a_population():
    """Two named steps that take turns, with an average around each."""
    net = nn.ModuleDict({"a": Scales(0.5), "b": Scales()})
    steps = [
        pr.TrainStep(
            net, lambda m, b: loss(m["b"], (m["a"](b[0]).repeat(1, 2), b[1])), SGD, engine="func", name=name, params=p
        )
        for name, p in [("first", "a.*"), ("second", "b.*")]
    ]
    first, second = (pr.wrap(step, pr.Vmap(2, hyper={"lr": [0.1, 0.2]}), pr.EMA(0.9)) for step in steps)
    one, two = (pr.wrap(step, pr.EMA(0.9)) for step in steps)
    state = pr.init(3, first, second)
    alone = list(pr.unstack(state))
    for batch in batches(3):
        state = second(first(state, batch), batch)
        alone = [two(one(each, batch), batch) for each in alone]

    assert same(state, alone)


def test_a_member_that_diverges_stops_nobody_else():
    """Until all have diverged."""
    sweep, (batch,) = pr.wrap(make_step(), pr.Vmap(2)), batches(1)
    state = sweep.init(0)
    broken = state["params", "bias"].clone()
    broken[0] = torch.nan
    after = sweep(state.replace(params={"bias": broken}), batch)

    assert [False, True] == after["metrics", "loss"].isfinite().tolist()
    assert pr.digest(pr.unstack(sweep(state, batch))[1]) == pr.digest(pr.unstack(after)[1])
    with pytest.raises(NonFiniteLoss):
        sweep(after.replace(params={"bias": torch.full_like(broken, torch.nan)}), batch)


@pytest.mark.parametrize("wrappers", [(), (pr.Accumulate(2), pr.EMA(0.9))], ids=["alone", "wrapped"])
def test_every_law_holds(wrappers):
    """Purity, resume at every iteration, constant shapes, values equal lease; with dropout and BatchNorm."""

    def run():
        step = make_step(mlp(nn.BatchNorm1d(17), nn.Dropout(0.3)), schedule=WARM)
        return pr.TrainLoop(pr.wrap(step, pr.Vmap(2, hyper={"lr": [0.1, 0.2]}), *wrappers), epochs=2), loader

    x, y = (torch.cat(each) for each in zip(*batches(2), strict=True))
    loader = pr.Loader(pr.data.Tensors(x, y), batch_size=6, shuffle=True)
    loop, _ = run()

    check_everything(loop, loop.step.init(3), loader, again=run)


def test_a_compiled_sweep_follows_up_to_rounding():
    """Dropout masks are the same ones; a changed learning rate and a schedule need no new graph."""
    step = make_step(mlp(nn.Dropout(0.3)), schedule=WARM)
    sweep = pr.wrap(step, pr.Vmap(MEMBERS, hyper={"lr": RATES}), pr.Compile(graphs=1))

    assert gap(*follow(sweep, step, batches(5))) < 1e-5


@pytest.mark.filterwarnings("ignore::purerun.wrappers.vmap.SameMembers")
def test_an_ensemble_predicts_as_its_members_do_one_by_one():
    """All at once, in evaluation mode, at the trained weights and at averaged ones; chance included."""
    net, (batch, *_) = mlp(nn.BatchNorm1d(17)).double(), batches(1, torch.float64)
    sweep = pr.wrap(make_step(net), pr.Vmap(MEMBERS), pr.EMA(0.5))
    state = sweep(sweep(sweep.init(0), batch), batch)
    for weights in ("", "ema"):
        predict = pr.PredictStep(net, lambda model, x: model(x) + torch.rand(3), weights)
        each = torch.stack([predict(member, batch[0]) for member in pr.unstack(state)])
        torch.testing.assert_close(each, predict(state, batch[0]), rtol=1e-12, atol=1e-14)


def test_validation_scores_each_member():
    """The scores of a population are tensors, and its members' are those of validating one by one."""
    net = Scales()
    sweep = pr.wrap(make_step(net), pr.Vmap(MEMBERS, hyper={"lr": RATES}))
    judge = pr.ValLoop(pr.ValStep(net, metrics={"error": pr.metrics.Each(MEMBERS, pr.metrics.MeanSquaredError())}))
    one = pr.ValLoop(pr.ValStep(net, metrics={"error": pr.metrics.MeanSquaredError()}))
    loop = pr.TrainLoop(sweep, iters=3, hooks=[pr.hooks.Validate(judge, batches(2), every="1 iter")])
    state = list(loop(sweep.init(0), batches(3)))[-1]

    assert [one(member, batches(2))["error"].item() for member in pr.unstack(state)] == state[
        "scores", "error"
    ].tolist()


def step_with_lbfgs():
    """Make a step that searches along a line."""
    return make_step(optimizer=pr.optim.Torch(torch.optim.LBFGS, lr=0.5))


REFUSED = {
    "another engine": (lambda: [pr.TrainStep(Scales(), loss, SGD), pr.Vmap(2)], "engine='func'"),
    "a sweep of sweeps": (lambda: [make_step(), pr.Vmap(2), pr.Vmap(2)], "one of its kind already"),
    "a count inside": (lambda: [make_step(), pr.EMA(0.9), pr.Vmap(2)], "put it around Vmap"),
    "a graph inside": (lambda: [make_step(), pr.Compile(), pr.Vmap(2)], "put Compile outermost"),
    "a line search": (lambda: [step_with_lbfgs(), pr.Vmap(2)], "takes each member another number of looks"),
    "a norm of all": (lambda: [make_step(), pr.Vmap(2), pr.Clip(norm=1.0)], "put it inside of Vmap"),
    "one rate for all": (lambda: [make_step(), pr.Vmap(2), pr.Dropout()], "put it inside of Vmap"),
    "too few settings": (lambda: [make_step(), pr.Vmap(3, hyper={"lr": [0.1]})], "each of 3 members, got 1"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_when_it_is_made(make, said):
    """In one line that says what would."""
    with pytest.raises(ValueError, match=said):
        pr.wrap(*make())


def elsewhere(model, batch):
    """Draw from Python's generator, through a door that no look at the code finds."""
    return loss(model, batch) * importlib.import_module("random").random()


@pytest.mark.filterwarnings("ignore::purerun.wrappers.vmap.SameMembers")
def test_what_does_not_fit_is_refused_when_it_is_met():
    """A hyper-parameter that nobody has, an optimizer without a traced form, chance of others, other states."""
    (batch,), step = batches(1), make_step()
    sweep = pr.wrap(step, pr.Vmap(2))
    with pytest.raises(ValueError, match="got 'rate'"):
        pr.wrap(step, pr.Vmap(2, hyper={"rate": [1, 2]})).init()
    nadam = pr.wrap(make_step(optimizer=pr.optim.Torch(torch.optim.NAdam, lr=0.1)), pr.Vmap(2))
    with pytest.raises(TypeError, match="no form to map"):
        nadam(nadam.init(), batch)
    with pytest.raises(SweepError, match="draw from torch's generators only"):
        hidden = pr.wrap(pr.TrainStep(Scales(), elsewhere, SGD, engine="func"), pr.Vmap(2))
        hidden(hidden.init(), batch)
    with pytest.raises(pr.StateError, match="expected a population of 2, got the state of a single run"):
        sweep(step.init(), batch)
    with pytest.raises(pr.StateError, match="expected a population of 2, got a population of 3"):
        sweep(pr.wrap(step, pr.Vmap(3)).init(), batch)
    with pytest.raises(pr.StateError, match="expected the state of a single run, got a population of 2"):
        step(sweep.init(), batch)


@pytest.mark.filterwarnings("ignore::purerun.wrappers.vmap.SameMembers")
def test_chance_that_begins_later_is_noticed(monkeypatch):
    """Whatever the first iterations looked like."""
    model = Scales()
    step = make_step(model)
    sweep = pr.wrap(step, pr.Vmap(MEMBERS))
    state, alone = follow(sweep, step, batches(2))
    monkeypatch.setattr(model.drop, "p", 0.5)
    for batch in batches(2):
        state, alone = sweep(state, batch), [step(each, batch) for each in alone]

    assert same(state, alone)


def test_members_that_would_do_the_same_are_told():
    """By weights, hyper-parameters or chance they differ; without any of these it is one run, many times."""
    x = torch.ones(4, 2)

    def sweep(*layers, wrapper=pr.Vmap(3), **options):  # noqa: B008
        net = nn.Sequential(*layers, nn.Linear(2, 1))
        step = pr.TrainStep(net, lambda m, x: m(x).square().mean(), pr.optim.SGD(lr=0.1), engine="func", **options)
        return pr.wrap(step, wrapper)

    alike = sweep()
    with pytest.warns(SameMembers, match=r"the 3 members of this sweep are one run.*init=pr.initial.Fresh"):
        state = alike(alike.init(), x)
    alike(state, x)  # once is enough
    for differing in (
        sweep(nn.Dropout(0.5)),
        sweep(wrapper=pr.Vmap(3, hyper={"lr": [0.1, 0.1, 0.2]})),
        sweep(init=pr.initial.Fresh(lambda: nn.Sequential(nn.Linear(2, 1)))),
        sweep(wrapper=pr.Vmap(1)),
        sweep(init=pr.initial.Fresh(lambda: nn.Sequential(nn.Linear(2, 1)), match="0.bias")),
    ):
        differing(differing.init(), x)
