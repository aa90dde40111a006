"""Optimizers of torch, and of strangers, made pure."""

from __future__ import annotations

import copy
import threading

import attrs
import pytest
import torch
from torch import Tensor

from purerun.identity import read_bytes
from purerun.optim import Group, Torch
from purerun.optim.cells import Unkeepable
from purerun.optim.proxy import Proxy


class Odd(torch.optim.Optimizer):
    """Remembers a float, an int, a word, None at first, a tensor or None, a list that fills up, and a dict."""

    def __init__(self, params, lr=0.1, keep=3):
        super().__init__(params, {"lr": lr, "keep": keep})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(rate=1.0, count=0, mode="first", last=None, even=None, window=[], deep={"a": p * 0})
                state["rate"] *= 0.9
                state["count"] += 1
                state["mode"] = "later"
                state["window"].append(p.grad.clone())
                del state["window"][: -group["keep"]]
                state["deep"]["a"] = state["deep"]["a"] + p.grad
                state["even"] = p.grad.clone() if state["count"] % 2 == 0 else None
                direction = sum(state["window"]) / len(state["window"])
                if state["last"] is not None:
                    direction = direction + 0.1 * state["last"] * state["rate"]
                if state["even"] is not None:
                    direction = direction + state["even"]
                p.data = p.data - group["lr"] * direction  # puts another tensor in the place of the parameter
                state["last"] = p.grad  # keeps the very tensor that it was given


class Adaptive(torch.optim.Optimizer):
    """Changes numbers and a tensor in its parameter group, as Prodigy and schedule-free optimizers do."""

    def __init__(self, params, lr=0.1, d=1.0):
        super().__init__(params, {"lr": lr, "d": d, "k": 0, "total": None})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            norm = sum(p.grad.square().sum() for p in group["params"])
            group["total"] = norm if group["total"] is None else group["total"] + norm
            group["k"] += 1
            group["d"] = group["d"] * 1.1
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"] * group["d"] / group["k"] / float(group["total"] + 1))


class Secretive(torch.optim.Optimizer):
    """Counts in an attribute of its own, where nobody can see it."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"] / self.count)


class Noisy(torch.optim.Optimizer):
    """Draws from the global generator."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["noise"] = torch.rand_like(p)
                p.add_(p.grad + self.state[p]["noise"], alpha=-group["lr"])


class Spoiling(torch.optim.Optimizer):
    """Writes into the gradients."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(2)
                p.add_(p.grad, alpha=-group["lr"])


class Endless(torch.optim.Optimizer):
    """Remembers every gradient."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("all", []).append(p.grad.clone())
                p.sub_(group["lr"] * sum(self.state[p]["all"]))


def start():
    return {"w": torch.linspace(-1, 1, 6).reshape(2, 3), "b": torch.tensor([0.5, -0.25])}


def grads_of(params, turn):
    return {name: (param * 1.5 - turn / 3).sin() for name, param in params.items()}


def follow(optimizer, cls, steps=12, **options):
    """Run the pure form beside the original; say after how many steps they part."""
    params = start()
    stands = {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}
    oracle, slots = cls(list(stands.values()), **options), optimizer.init(params)
    for turn in range(steps):
        for stand in stands.values():
            stand.grad = (stand.detach() * 1.5 - turn / 3).sin()
        oracle.step()
        params, slots = optimizer.update(params, grads_of(params, turn), saved(slots))
        if any(read_bytes(params[name]) != read_bytes(stands[name]) for name in params):
            return turn
    return steps


def saved(tree):
    """Write a tree down and read it back."""
    return tree.clone() if isinstance(tree, Tensor) else {name: saved(inner) for name, inner in tree.items()}


def spec(tree):
    return (tree.shape, tree.dtype) if isinstance(tree, Tensor) else {name: spec(inner) for name, inner in tree.items()}


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_odd_memories_come_back(keep):
    """Floats, ints, words, None, lists and dicts are kept as tensors of constant shape, and come back as themselves."""
    odd = Torch(Odd, capacity=max(keep, 2), keep=keep)

    assert follow(odd, Odd, keep=keep) == 12
    slots = odd.init(start())
    _, after = odd.update(start(), grads_of(start(), 0), slots)
    assert spec(slots) == spec(after)
    assert after["rate"]["w"].dtype == torch.float64
    assert after["count"]["w"].dtype == torch.int64
    assert int(after["count"]["w"]) == 1


def test_memories_of_parameter_groups_come_back():
    """What an optimizer changes in its parameter groups is memory, not a hyper-parameter."""
    adaptive = Torch(Adaptive)

    assert follow(adaptive, Adaptive) == 12
    assert adaptive.hyper() == {"lr": 0.1}
    assert {"group.d", "group.k", "group.total", "started"} == set(adaptive.init(start()))


def test_a_secret_memory_is_found():
    """An optimizer that remembers in attributes of its own is refused, before it can do harm."""
    with pytest.raises(Unkeepable, match="expected Secretive to keep all that it remembers in its state"):
        Torch(Secretive).init(start())


def test_chance_comes_from_the_global_generator():
    """Noise inside an optimizer is that of the original, and a trial does not move the generator."""
    noisy = Torch(Noisy)
    state = torch.get_rng_state()
    slots = noisy.init(start())

    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected, _ = noisy.update(start(), grads_of(start(), 0), slots)
        torch.manual_seed(0)
        actual, _ = noisy.update(start(), grads_of(start(), 0), slots)
    assert torch.equal(expected["w"], actual["w"])


def test_gradients_are_not_spoiled():
    """An optimizer that writes into the gradients does so on copies."""
    grads = grads_of(start(), 0)
    before = saved(grads)
    spoiling = Torch(Spoiling)
    spoiling.update(start(), grads, spoiling.init(start()))

    assert follow(spoiling, Spoiling) == 12
    assert all(torch.equal(before[name], grads[name]) for name in grads)


def test_a_list_that_grows_wants_a_capacity():
    """A growing list is refused until somebody says how far; a step beyond that says so."""
    with pytest.raises(Unkeepable, match=r"memory 'all' of `w` to be .* one that grows; say how far with capacity="):
        Torch(Endless).init(start())
    with pytest.raises(Unkeepable, match=r"memory 'all' of `w` to be a list of at most 5 items, got 6"):
        follow(Torch(Endless, capacity=5), Endless, steps=9)

    assert follow(Torch(Endless, capacity=9), Endless, steps=9) == 9


def test_muon_names_what_it_cannot_take():
    """Parameters that an optimizer refuses are named, with the remedy."""
    with pytest.raises(ValueError, match=r"Muon refuses 1 of 2 parameters, `b` \[2\]: Muon only .*pr\.optim\.split"):
        Torch(torch.optim.Muon).init(start())


def test_lbfgs_asks_for_its_closure():
    """An optimizer that closes says so, and what was missing."""
    lbfgs = Torch(torch.optim.LBFGS)

    assert lbfgs.closes
    assert not Torch(torch.optim.AdamW).closes
    with pytest.raises(TypeError, match="expected a closure for LBFGS"):
        lbfgs.update(start(), grads_of(start(), 0), lbfgs.init(start()))


@pytest.mark.parametrize("max_iter", [1, 2, 20])
@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e3])
def test_lbfgs_equals_the_original_on_real_losses(max_iter, search, scale):
    """With gradients by autograd, LBFGS goes the way of the original, however its searches end."""
    options = {"max_iter": max_iter, "history_size": 3, "line_search_fn": search}
    inputs = torch.linspace(-2, 2, 12).reshape(4, 3).sin()

    def loss(params):
        return scale * (torch.tanh(inputs @ params["w"].T + params["b"]).sum(1) - 0.3).square().mean()

    def closure(params):
        leaves = {name: param.detach().clone().requires_grad_() for name, param in params.items()}
        value = loss(leaves)
        return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

    pure, params = Torch(torch.optim.LBFGS, **options), start()
    stands = {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}
    oracle, slots = torch.optim.LBFGS(list(stands.values()), **options), pure.init(params)

    def backward():
        oracle.zero_grad()
        value = loss(stands)
        value.backward()
        return value

    for _ in range(10):
        oracle.step(backward)
        params, slots = pure.update(params, closure(params)[1], saved(slots), closure=closure)

        assert all(torch.equal(stands[name], params[name]) for name in params)


def test_steps_share_a_value_and_nothing_else():
    """Two runs that take turns with one value go as each alone; so do runs in two threads."""
    nadam = Torch(torch.optim.NAdam, lr=0.05)

    def run(turns, out, key):
        params, slots = start(), nadam.init(start())
        for turn in turns:
            params, slots = nadam.update(params, grads_of(params, turn), slots)
        out[key] = params

    expected: dict = {}
    run(range(30), expected, 0)
    run(range(30, 60), expected, 1)
    actual: dict = {}
    threads = [threading.Thread(target=run, args=(range(30 * k, 30 * k + 30), actual, k)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(torch.equal(expected[k][name], actual[k][name]) for k in (0, 1) for name in start())


def test_a_step_that_raises_leaves_nothing_behind():
    """After a step that raised, the next one goes as if there had been none."""
    adamw = Torch(torch.optim.AdamW, lr=0.05)
    params, slots = adamw.update(start(), grads_of(start(), 0), adamw.init(start()))
    expected, _ = adamw.update(params, grads_of(params, 1), slots)
    bad = {**grads_of(params, 1), "b": torch.ones(2, dtype=torch.float64)}
    with pytest.raises(RuntimeError):
        adamw.update(params, bad, slots)
    actual, _ = adamw.update(params, grads_of(params, 1), slots)

    assert all(torch.equal(expected[name], actual[name]) for name in params)


def test_nothing_of_a_step_is_held():
    """Between two steps an optimizer holds no tensor of either: a leased state stays alone."""
    adamw = Torch(torch.optim.AdamW)
    adamw.update(start(), grads_of(start(), 0), adamw.init(start()))
    proxies = [proxy for proxy in adamw._idle.values() if isinstance(proxy, Proxy)]

    assert len(proxies) == 1
    assert not proxies[0].optimizer.state
    assert all(not p.numel() and p.grad is None for group in proxies[0].optimizer.param_groups for p in group["params"])


def test_is_a_value():
    """It compares, hashes, prints, evolves and copies by what it was made with."""
    a, b = Torch(torch.optim.NAdam, lr=0.1, betas=[0.9, 0.99]), Torch(torch.optim.NAdam, betas=(0.9, 0.99), lr=0.1)
    a.update(start(), grads_of(start(), 0), a.init(start()))

    assert a == b
    assert hash(a) == hash(b)
    assert repr(a) == "Torch(NAdam, betas=(0.9, 0.99), lr=0.1)"
    assert attrs.evolve(a, lr=0.2) == Torch(torch.optim.NAdam, lr=0.2, betas=(0.9, 0.99))
    assert attrs.evolve(a, lr=0.2) != a
    assert copy.deepcopy(a) == a
    assert a._idle
    assert not copy.deepcopy(a)._idle


def test_hyper_parameters_have_names():
    """Floats among the options are leaves; those of tuples are numbered; counts are none."""
    cls = torch.optim

    assert Torch(cls.NAdam, lr=1, betas=(0.8, 0.9)).hyper() == {
        "lr": 1.0,
        "beta1": 0.8,
        "beta2": 0.9,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum_decay": 0.004,
    }
    assert set(Torch(cls.LBFGS).hyper()) == {"lr", "tolerance_grad", "tolerance_change"}
    assert Torch(cls.Rprop).hyper() == {"lr": 0.01, "eta1": 0.5, "eta2": 1.2, "step_size1": 1e-6, "step_size2": 50.0}
    assert "eps2" in Torch(cls.Adafactor).hyper()
    assert "eps1" not in Torch(cls.Adafactor).hyper()


def test_hyper_parameters_reach_tuples():
    """A beta that is a leaf of the state is the beta of the step."""
    params, grads = start(), grads_of(start(), 0)
    nadam, other = Torch(torch.optim.NAdam), Torch(torch.optim.NAdam, betas=(0.5, 0.7))
    expected, _ = other.update(params, grads, other.init(params))
    actual, _ = nadam.update(params, grads, nadam.init(params), {"beta1": 0.5, "beta2": 0.7})

    assert torch.equal(expected["w"], actual["w"])
    with pytest.raises(KeyError, match="beta3"):
        nadam.update(params, grads, nadam.init(params), {"beta3": 0.5})


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Torch(torch.nn.Linear), TypeError, "expected a class of optimizers such as torch.optim.NAdam"),
        (lambda: Torch(torch.optim.SGD([torch.zeros(1)])), TypeError, "give the class itself"),
        (lambda: Torch(torch.optim.SGD, lr=torch.tensor(0.1)), TypeError, "expected lr of SGD to be a number"),
        (lambda: Torch(torch.optim.Adam, betas=(torch.tensor(0.1), 0.9)), TypeError, "expected betas of Adam"),
        (lambda: Torch(torch.optim.SGD, lrr=0.1), TypeError, "SGD refuses {'lrr': 0.1}"),
        (lambda: Torch(torch.optim.SGD, lr=-1.0), ValueError, "Invalid learning rate"),
        (lambda: Torch(torch.optim.Adam, differentiable=True), ValueError, "without differentiable=True"),
        (
            lambda: Torch(torch.optim.SparseAdam, groups=[Group("*", decay_mult=0)]),
            ValueError,
            r"which Torch has, got \['weight_decay'\]",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make, error, said):
    """A wrong class, option or group is an error when the value is made."""
    with pytest.raises(error, match=said):
        make()


def test_complex_parameters_and_mixed_dtypes():
    """Complex numbers, and several dtypes in one update, go as in the original."""
    params = {"z": torch.tensor([1 + 2j, -0.5j]), "w": torch.ones(3, dtype=torch.float64), "v": torch.ones(2)}
    adam = Torch(torch.optim.Adam, lr=0.1)
    stands = {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}
    oracle, slots = torch.optim.Adam(list(stands.values()), lr=0.1), adam.init(params)
    for turn in range(5):
        for stand in stands.values():
            stand.grad = stand.detach() * (turn + 1)
        oracle.step()
        params, slots = adam.update(params, {name: param * (turn + 1) for name, param in params.items()}, slots)

        assert all(torch.equal(stands[name], params[name]) for name in params)
