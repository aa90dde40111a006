"""Each optimizer of the table obeys each law; an optimizer of torch is the oracle of each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from purerun.identity import read_bytes
from purerun.optim import Bucket
from purerun.optim.optimizer import owned
from purerun.testing.optimizers import OPTIMIZERS

each = pytest.mark.parametrize("case", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
STEPS = 22


def flat(tree, path=""):
    """List the leaves of nested dicts of tensors by path."""
    if isinstance(tree, Tensor):
        return {path: tree}
    return {key: leaf for name, inner in tree.items() for key, leaf in flat(inner, f"{path}/{name}").items()}


def bits(tree):
    """Say the bits of a tree: what is equal only if every bit is."""
    return {path: bytes(read_bytes(leaf.to_dense() if leaf.is_sparse else leaf)) for path, leaf in flat(tree).items()}


def spec(tree):
    """Say the keys, shapes and dtypes of a tree."""
    return {path: (leaf.shape, leaf.dtype) for path, leaf in flat(tree).items()}


def saved(tree):
    """Write a tree down and read it back: new contiguous tensors, in the order of their names."""
    if isinstance(tree, Tensor):
        return tree.clone(memory_format=torch.contiguous_format)
    return {name: saved(tree[name]) for name in sorted(tree)}


def advance(case, optimizer, params, slots, turn, hyper=None):
    """Do one step on the batch of a turn."""

    def closure(at):
        return case.evaluate(at, turn)

    return optimizer.update(
        params, case.evaluate(params, turn)[1], slots, hyper, closure=closure if optimizer.closes else None
    )


def stand_ins(params):
    """Make what an optimizer of torch works on."""
    return {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}


def oracle_step(case, oracle, stands, turn):
    """Let the oracle do the same step."""

    def closure():
        loss, grads = case.evaluate({name: stand.detach() for name, stand in stands.items()}, turn)
        for name, stand in stands.items():
            stand.grad = grads[name]
        return loss

    if case.optimizer.closes:
        oracle.step(closure)
    else:
        closure()
        oracle.step()


@each
def test_equals_the_optimizer_of_torch(case):
    """Every step of more than twenty has the bits of the stateful original, in each dtype."""
    for dtype in case.dtypes:
        params = case.params(dtype)
        stands = stand_ins(params)
        oracle = case.oracle(list(stands.values()))
        slots = case.optimizer.init(params)
        for turn in range(STEPS):
            oracle_step(case, oracle, stands, turn)
            params, slots = advance(case, case.optimizer, params, slots, turn)

            assert bits({name: stand.detach() for name, stand in stands.items()}) == bits(params), (dtype, turn)
        assert bits(case.params(dtype)) != bits(params)


@each
def test_update_is_pure(case):
    """An update leaves its arguments as they are, makes the same bits twice and shares no tensor with them."""
    params = case.params()
    slots = case.optimizer.init(params)
    for turn in range(3):
        grads = case.evaluate(params, turn)[1]
        before = bits(params), bits(slots), bits(grads)
        first = advance(case, case.optimizer, params, slots, turn)
        second = advance(case, case.optimizer, params, slots, turn)

        assert before == (bits(params), bits(slots), bits(grads))
        assert (bits(first[0]), bits(first[1])) == (bits(second[0]), bits(second[1]))
        given = {id(leaf) for tree in (params, slots, grads) for leaf in flat(tree).values()}
        assert given.isdisjoint(id(leaf) for tree in first for leaf in flat(tree).values())
        for leaf in [*flat(first[0]).values(), *flat(first[1]).values()]:
            leaf.zero_()  # writing into what came out harms nothing that went in

        assert before == (bits(params), bits(slots), bits(grads))
        params, slots = second


@each
def test_resumes_at_every_step(case):
    """A run that is written down and read back after any step, by another process so to say, goes on the same."""
    states = [(case.params(), case.optimizer.init(case.params()))]
    for turn in range(6):
        states.append(advance(case, case.optimizer, *states[-1], turn))
    for start in range(6):
        params, slots = saved(states[start][0]), saved(states[start][1])
        params = {name: params[name] for name in case.shapes}  # a step has an order of its own
        other = copy.deepcopy(case.optimizer)
        for turn in range(start, 6):
            params, slots = advance(case, other, params, slots, turn)

        assert (bits(states[-1][0]), bits(states[-1][1])) == (bits(params), bits(slots)), start


@each
def test_shapes_are_constant(case):
    """The slots have their keys, shapes and dtypes from `init` on, and no empty container."""
    params = case.params()
    slots = case.optimizer.init(params)
    expected = spec(slots)

    def containers(tree):
        return [] if isinstance(tree, Tensor) else [tree, *(c for inner in tree.values() for c in containers(inner))]

    assert all(containers(slots)[1:])
    for turn in range(5):
        params, slots = advance(case, case.optimizer, params, slots, turn)

        assert expected == spec(slots)
        assert all(leaf.layout is torch.strided for leaf in flat(slots).values())


@each
def test_init_is_pure(case):
    """`init` changes neither the parameters nor any generator, and does not depend on their values."""
    params = case.params()
    before, chance = bits(params), torch.get_rng_state()
    slots = case.optimizer.init(params)
    others = case.optimizer.init({name: param + 1 for name, param in params.items()})

    assert before == bits(params)
    assert torch.equal(chance, torch.get_rng_state())
    assert bits(slots) == bits(others)


@each
def test_hyper_parameters_are_the_given_ones(case):
    """A learning rate that changes on the way has the effect that it has in `param_groups`."""
    rates = [name for name in case.optimizer.hyper() if name == "lr" or name.endswith(".lr")]
    params = case.params()
    stands = stand_ins(params)
    oracle = case.oracle(list(stands.values()))
    optimizers = oracle.inner if hasattr(oracle, "inner") else oracle
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    slots = case.optimizer.init(params)
    base = case.optimizer.hyper()
    for turn in range(6):
        factor = 0.5**turn
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor
        oracle_step(case, oracle, stands, turn)
        hyper = {name: base[name] * factor for name in rates}
        params, slots = advance(case, case.optimizer, params, slots, turn, hyper)

        assert bits({name: stand.detach() for name, stand in stands.items()}) == bits(params)
    assert rates


@each
def test_buckets_are_parameter_groups(case):
    """Parameters with multiples of the learning rate move as in a parameter group of their own."""
    params = case.params()
    stands, names = stand_ins(params), list(params)
    if case.optimizer.closes or not isinstance(case.oracle([*stands.values()]), torch.optim.Optimizer):
        pytest.skip("the oracle takes no parameter groups")
    base = case.optimizer.hyper()
    slow = {**base, "lr": base["lr"] * 0.1}
    buckets = [Bucket(tuple(names[:1]), base), Bucket(tuple(names[1:]), slow)]
    oracle = case.oracle(
        [{"params": [stands[names[0]]]}, {"params": [stands[name] for name in names[1:]], "lr": slow["lr"]}]
    )
    slots = case.optimizer.init(params)
    params, slots = owned(params), owned(slots)
    for turn in range(5):
        oracle_step(case, oracle, stands, turn)
        objects = {name: id(param) for name, param in params.items()}
        grads = case.evaluate(params, turn)[1]
        before = bits(grads)
        case.optimizer.write(params, grads, slots, buckets)

        assert before == bits(grads)
        assert objects == {name: id(param) for name, param in params.items()}
        assert bits({name: stand.detach() for name, stand in stands.items()}) == bits(params)
