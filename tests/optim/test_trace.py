"""The forms to map and differentiate: equal to torch's own, to the kernels, and to differences."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from purerun.optim import SGD, Adagrad, Adam, AdamW, Bucket, ClipNorm, ClipValue, Ndim, RMSprop, Torch, chain, split
from purerun.testing.optimizers import OPTIMIZERS

TRACED = {name: case for name, case in OPTIMIZERS.items() if case.traced}
each = pytest.mark.parametrize("case", TRACED.values(), ids=TRACED.keys())

NATIVE = {
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.1}),
    "sgd, nesterov": (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "sgd, dampening": (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    "adam": (Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adam, amsgrad": (Adam, torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "maximize": True}),
    "adamw": (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "adagrad": (Adagrad, torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5}),
    "adagrad, maximize": (Adagrad, torch.optim.Adagrad, {"lr": 0.1, "maximize": True}),
    "rmsprop": (RMSprop, torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop, centered": (RMSprop, torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.9}),
}
"""Ours, torch's, and the arguments of both."""

DERIVED = {
    "sgd": (
        SGD(lr=0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
        ["lr", "weight_decay", "momentum", "dampening"],
    ),
    "sgd, nesterov": (SGD(lr=0.1, momentum=0.8, weight_decay=0.1, nesterov=True), ["lr", "weight_decay", "momentum"]),
    "adam": (Adam(lr=0.05, weight_decay=0.1), ["lr", "weight_decay", "beta1", "beta2", "eps"]),
    "adamw": (AdamW(lr=0.05, weight_decay=0.1, amsgrad=True), ["lr", "weight_decay", "beta1", "beta2", "eps"]),
    "adagrad": (Adagrad(lr=0.1, lr_decay=0.1, weight_decay=0.1), ["lr", "lr_decay", "weight_decay", "eps"]),
    "rmsprop": (RMSprop(lr=0.02, weight_decay=0.1, momentum=0.5), ["lr", "weight_decay", "alpha", "momentum", "eps"]),
    "rmsprop, centered": (RMSprop(lr=0.02, centered=True, eps=1e-3), ["lr", "alpha", "eps"]),
    "chain": (chain(clip=ClipNorm(0.5), sgd=SGD(lr=0.1, momentum=0.9)), ["lr", "momentum", "clip.max_norm"]),
    "value": (chain(clip=ClipValue(0.5), adam=Adam(lr=0.05)), ["lr", "beta1", "clip.value"]),
    "split": (
        split(a=(Ndim(2), SGD(lr=0.1, momentum=0.9)), b=AdamW(lr=0.05)),
        ["a.lr", "a.momentum", "b.weight_decay"],
    ),
}
"""An optimizer and the hyper-parameters by which its runs have a derivative."""


def leaves(optimizer):
    """Make the hyper-parameters the leaves that a state has: 0-d float64 tensors."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in optimizer.hyper().items()}


def start(dtype=torch.float64):
    """Make parameters of a little regression."""
    return {
        "weight": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).to(dtype),
        "bias": torch.tensor([0.3, -0.2], dtype=dtype),
    }


def loss(params, turn=0):
    """Compute the loss of a turn."""
    inputs = torch.linspace(-2, 1.5, 12, dtype=torch.float64).reshape(4, 3).cos() + 0.1 * turn
    return (inputs.to(params["bias"]) @ params["weight"].T + params["bias"]).sub(0.7).square().mean()


def run(optimizer, hyper, params=None, steps=5):
    """Train for some steps, out of place; return the loss at the end."""
    params = params or start()
    slots, buckets = optimizer.init(params), [Bucket(tuple(params), hyper)]
    for turn in range(steps):
        grads = grad(partial(loss, turn=turn))(params)
        params, slots = optimizer.trace(params, grads, slots, buckets)
    return loss(params)


def steps_of(optimizer, params, turns, *, form):
    """Move parameters over some turns with the kernels or with their traced form."""
    hyper = optimizer.hyper() if form == "write" else leaves(optimizer)
    slots, buckets = optimizer.init(params), [Bucket(tuple(params), hyper)]
    params = {name: param.clone() for name, param in params.items()}
    for grads in turns:
        if form == "write":
            optimizer.write(params, grads, slots, buckets)
        else:
            params, slots = optimizer.trace(params, grads, slots, buckets)
    return params, slots


def tree_equal(expected, actual):
    """Compare nested dicts of tensors bit for bit."""
    if isinstance(expected, Tensor):
        return torch.equal(expected, actual) and expected.dtype == actual.dtype
    return expected.keys() == actual.keys() and all(tree_equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize("row", NATIVE.values(), ids=NATIVE.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_equals_the_differentiable_form_of_torch(row, dtype):
    """With numbers as hyper-parameters the traced form has the bits of torch's own differentiable form."""
    ours, theirs, options = row
    optimizer, params = ours(**options), start(dtype)
    stands = {name: param.clone() for name, param in params.items()}
    oracle = theirs(list(stands.values()), **options, foreach=False, differentiable=True)
    slots = optimizer.init(params)
    for turn in range(10):
        grads = {name: (param * 0.9 - turn / 7).sin() for name, param in params.items()}
        params, slots = optimizer.trace(params, grads, slots, [Bucket(tuple(params), optimizer.hyper())])
        for stand in stands.values():
            stand.grad = (stand * 0.9 - turn / 7).sin()
        oracle.step()

        assert tree_equal(stands, params), turn


@each
def test_equals_the_kernels(case):
    """The traced form and the kernels differ by rounding only, and make the same slots."""
    params = case.params(torch.float64)
    turns = [case.evaluate(params, turn)[1] for turn in range(12)]
    expected, kept = steps_of(case.optimizer, params, turns, form="write")
    actual, slots = steps_of(case.optimizer, params, turns, form="trace")

    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(slots, kept, rtol=1e-11, atol=1e-13)


@each
def test_trace_is_pure(case):
    """The traced form writes into nothing that it is given."""
    params = case.params()
    slots, grads = case.optimizer.init(params), case.evaluate(params, 0)[1]
    before = [{name: tensor.clone() for name, tensor in tree.items()} for tree in (params, grads)]
    buckets = [Bucket(tuple(params), leaves(case.optimizer))]
    first = case.optimizer.trace(params, grads, slots, buckets)
    second = case.optimizer.trace(params, grads, slots, buckets)

    assert tree_equal(first[0], second[0])
    assert tree_equal(first[1], second[1])
    assert tree_equal(before[0], params)
    assert tree_equal(before[1], grads)


@each
def test_keeps_shapes_and_dtypes(case):
    """Tensors of double precision as hyper-parameters do not make parameters or slots of double precision."""
    params = case.params()
    slots, grads = case.optimizer.init(params), case.evaluate(params, 0)[1]
    moved, after = case.optimizer.trace(params, grads, slots, [Bucket(tuple(params), leaves(case.optimizer))])

    def spec(tree):
        return {k: spec(v) if isinstance(v, dict) else (v.shape, v.dtype) for k, v in tree.items()}

    assert spec(params) == spec(moved)
    assert spec(slots) == spec(after)


@pytest.mark.parametrize("row", DERIVED.values(), ids=DERIVED.keys())
def test_derivatives_equal_differences(row):
    """The loss after five steps has the derivative by each hyper-parameter that central differences see."""
    optimizer, names = row
    hyper = leaves(optimizer)
    derived = grad(lambda chosen: run(optimizer, {**hyper, **chosen}))({name: hyper[name] for name in names})
    for name in names:
        width = 1e-5 * max(float(hyper[name]), 1e-4)
        ends = [float(run(optimizer, {**hyper, name: hyper[name] + sign * width})) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * width)

        assert expected == pytest.approx(float(derived[name]), rel=1e-4, abs=1e-7), name
        assert float(derived[name]) != 0, name


# torch's forward mode scripts its own decompositions when it is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("row", DERIVED.values(), ids=DERIVED.keys())
def test_forward_and_reverse_derivatives_agree(row):
    """Plain autograd through the steps, torch.func.grad and jvp find the same derivative."""
    optimizer, (name, *_) = row
    hyper = leaves(optimizer)

    def trained(value):
        return run(optimizer, {**hyper, name: value})

    leaf = hyper[name].clone().requires_grad_()
    (plain,) = torch.autograd.grad(trained(leaf), leaf)
    _, forward = jvp(trained, (hyper[name],), (torch.ones_like(hyper[name]),))

    torch.testing.assert_close(plain, grad(trained)(hyper[name]))
    torch.testing.assert_close(forward, plain)


def test_derivatives_reach_the_first_parameters():
    """A run is a function of where it starts, through its first step too."""
    optimizer = SGD(lr=0.1, momentum=0.9)
    first = start()
    derived = grad(lambda params: run(optimizer, leaves(optimizer), params))(first)
    moved = {**first, "bias": first["bias"] + torch.tensor([1e-6, 0.0])}
    expected = (run(optimizer, leaves(optimizer), moved) - run(optimizer, leaves(optimizer), first)) / 1e-6

    assert float(expected) == pytest.approx(float(derived["bias"][0]), rel=1e-4)


@pytest.mark.parametrize("row", DERIVED.values(), ids=DERIVED.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_over_each_hyper_parameter(row, dtype):
    """Mapped over values of one hyper-parameter, each member is the run with that value."""
    optimizer, names = row
    hyper = leaves(optimizer)
    for name in names:
        values = hyper[name] * torch.tensor([0.5, 1.0, 1.1], dtype=torch.float64)
        values = values.clamp(max=0.9999) if name.startswith(("beta", "alpha")) else values

        def trained(value, name=name):
            return run(optimizer, {**hyper, name: value}, start(dtype))

        alone = torch.stack([trained(value) for value in values])
        together = vmap(trained)(values)

        assert alone.dtype == together.dtype == dtype
        torch.testing.assert_close(together, alone, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)


@each
@pytest.mark.parametrize("mapped", ["all", "grads", "params", "slots"])
def test_maps_over_members(case, mapped):
    """Stacked members, or members that share all but their gradients, move as each alone does."""
    count = 3
    bases = [case.params() for _ in range(count)]
    params = [{name: p * (1 + m / 8) for name, p in base.items()} for m, base in enumerate(bases)]
    grads = [case.evaluate(one, turn)[1] for turn, one in enumerate(params)]
    slots, hyper = [], []
    for member in range(count):
        # One step is behind each member, so that slots and counters hold something.
        made, kept = case.optimizer.update(params[member], grads[member], case.optimizer.init(params[member]))
        params[member], _ = made, slots.append(kept)
        hyper.append({name: value * (1 - member / 16) for name, value in leaves(case.optimizer).items()})
    parts = {"params": params, "grads": grads, "slots": slots, "hyper": hyper}
    shared = {part: mapped not in ("all", part) for part in parts}
    if mapped == "slots" and not slots[0]:
        pytest.skip("this optimizer has no slots")
    parts = {part: [some[0]] * count if shared[part] else some for part, some in parts.items()}

    def one(params, grads, slots, hyper):
        return case.optimizer.trace(params, grads, slots, [Bucket(tuple(params), hyper)])

    def stacked(trees):
        if isinstance(trees[0], Tensor):
            return torch.stack(trees)
        return {name: stacked([tree[name] for tree in trees]) for name in trees[0]}

    given = [some[0] if shared[part] else stacked(some) for part, some in parts.items()]
    together = vmap(one, in_dims=tuple(None if shared[part] else 0 for part in parts))(*given)
    alone = [one(*(some[member] for some in parts.values())) for member in range(count)]

    torch.testing.assert_close(together[0], stacked([moved for moved, _ in alone]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(together[1], stacked([after for _, after in alone]), rtol=1e-6, atol=1e-7)


def test_stacked_members_have_the_bits_of_each_alone():
    """A sweep of SGD members is exact: bit for bit the runs of its members."""
    optimizer = SGD(lr=0.1, momentum=0.9, weight_decay=0.01)
    rates = torch.tensor([0.01, 0.05, 0.1, 0.3], dtype=torch.float64)
    hyper = leaves(optimizer)

    def moved(rate):
        params = start(torch.float32)
        slots, buckets = optimizer.init(params), [Bucket(tuple(params), {**hyper, "lr": rate})]
        for turn in range(6):
            grads = {name: (param * (turn + 1)).sin() for name, param in params.items()}
            params, slots = optimizer.trace(params, grads, slots, buckets)
        return params

    together = vmap(moved)(rates)
    for place, rate in enumerate(rates):
        assert tree_equal(moved(rate), {name: stack[place] for name, stack in together.items()})


def test_an_optimizer_without_the_form_says_which_have_it():
    """Tracing an optimizer that torch cannot differentiate names those that can be."""
    optimizer, params = Torch(torch.optim.NAdam), start()
    with pytest.raises(TypeError, match=r"Torch has no form to map or differentiate.*SGD, Adam, AdamW"):
        optimizer.trace(params, params, optimizer.init(params), [Bucket(tuple(params), optimizer.hyper())])
