"""Activation checkpointing: the same bits in less memory, and a model that does not know."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import purerun as pr
from purerun.batch import BatchError
from purerun.bind import ModelError
from purerun.testing import MODELS, Case, snapshot
from purerun.testing.models import LAYERS

MOMENTUM = pr.optim.SGD(lr=0.1, momentum=0.9)
NESTED = Case(
    "nested",
    lambda: nn.Sequential(
        *(nn.Sequential(nn.Linear(6, 6), LAYERS[name](), nn.Linear(8, 6)) for name in ("batch norm", "dropout")),
        nn.Linear(6, 3),
    ),
)


class Elsewhere(nn.Module):
    """A layer that draws from numpy and from Python, and multiplies by it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return self.inner(x) * torch.from_numpy(np.random.rand(*x.shape)).to(x) * random.random()


DRAWING = Case("drawing", lambda: nn.Sequential(Elsewhere(), nn.Tanh(), Elsewhere(), nn.Linear(6, 3)))
CASES = [*(case for case in MODELS if len(list(case.module().children())) > 0), NESTED, DRAWING]


def steps(case, patterns="*"):
    """Make the step without and with it, of one module."""
    plain = pr.TrainStep(case.module(), case.loss, MOMENTUM)
    return plain, pr.wrap(plain, pr.Remat(patterns))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_bits_are_those_of_the_step_without_it(case):
    """Gradients, buffers (which the second run must not move) and dropout masks, over three steps."""
    plain, step = steps(case)
    first, second = plain.init(seed=1), step.init(seed=1)
    for seed in range(3):
        first, second = plain(first, case.data(seed)), step(second, case.data(seed))

    assert pr.digest(first) == pr.digest(second)


def test_layers_that_are_used_twice_run_again_twice():
    """Each use has seen other values of the buffers."""
    layer = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3))
    case = Case("shared", lambda: nn.Sequential(layer, nn.Linear(6, 6), layer, nn.Linear(6, 3)))
    plain, step = steps(case, "0")
    state = plain.init()

    assert pr.digest(plain(state, case.data())) == pr.digest(step(state, case.data()))


def counted(module):
    """Count in a list how often a module's forward runs, in a way that no step notices."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append("hook"))
    module.layer.register_forward_hook(lambda *_: calls.append("run"))
    return calls


class Outer(nn.Module):
    """A module around a layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x).exp()


def test_a_module_runs_again_and_its_own_hooks_do_not():
    """The forward twice; what is hooked to the chosen module from outside once."""
    net = nn.Sequential(Outer(), nn.Linear(6, 3))
    calls = counted(net[0])
    step = pr.wrap(pr.TrainStep(net, Case.loss, MOMENTUM), pr.Remat("0"))
    step(step.init(), NESTED.data())

    assert ["run", "hook", "run"] == calls


def saved(step, state, batch):
    """Measure the bytes of activations that wait for the backward pass."""
    kept = {}
    params = {leaf.data_ptr() for leaf in state["params"].values()}

    def note(tensor):
        if tensor.data_ptr() not in params:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step.grad(state, batch)
    return sum(kept.values())


def test_it_keeps_less():
    """Of four blocks of eight layers each only the inputs are left."""
    blocks = [nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Tanh()))) for _ in range(4)]
    plain = pr.TrainStep(nn.Sequential(*blocks, nn.Linear(6, 3)), Case.loss, MOMENTUM)
    state, batch = plain.init(), NESTED.data(samples=1000)

    assert saved(plain, state, batch) > 3 * saved(pr.wrap(plain, pr.Remat("?")), state, batch)


def test_the_model_is_left_as_it_was():
    """Also one with a forward of its own, and after an error in the loss."""
    module = NESTED.module()
    module[1].forward = own = module[1].forward

    def loss(model, batch):
        return NESTED.loss(model, batch) / batch["y"][0]

    step = pr.wrap(pr.TrainStep(module, loss, MOMENTUM), pr.Remat(["0", "1"]))
    before = snapshot.of_module(module, "model")
    step(step.init(), NESTED.data() | {"y": torch.ones(20, dtype=torch.int64)})
    with pytest.raises(BatchError):
        step(step.init(), {"x": torch.ones(3, 6)})

    assert before == snapshot.of_module(module, "model")
    assert own is vars(module[1])["forward"]
    assert "forward" not in vars(module[0])


def test_of_nested_modules_the_outermost_runs_again():
    """Once, not once for each name that matches."""
    net = nn.Sequential(Outer(), nn.Linear(6, 3))
    calls = counted(net[0])
    step = pr.wrap(pr.TrainStep(net, Case.loss, MOMENTUM), pr.Remat(["0", "0.*"]))
    step(step.init(), NESTED.data())

    assert 2 == calls.count("run")


def test_a_pattern_must_match():
    """The error names what is near."""
    plain, _ = steps(NESTED)
    with pytest.raises(ModelError, match=r"match '0\.5', got none; near it: .*0\.1"):
        pr.wrap(plain, pr.Remat(["1", "0.5"]))


def test_a_list_of_modules_has_no_forward():
    """It would be matched, and nothing would run again."""
    net = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(6, 3)])})
    step = pr.TrainStep(net, lambda model, batch: Case.loss(model["layers"][0], batch), MOMENTUM)
    with pytest.raises(ModelError, match=r"`layers` is a ModuleList, .* say 'layers\.\*'"):
        pr.wrap(step, pr.Remat("layers"))


def test_the_functional_engine_is_refused():
    """Its transforms cannot run a forward again."""
    step = pr.TrainStep(NESTED.module(), Case.loss, MOMENTUM, engine="func")
    for inner in ((), (pr.SkipNonFinite(),), (pr.Precision("float16"),)):
        with pytest.raises(ValueError, match="expected a step with engine='autograd'"):
            pr.wrap(step, *inner, pr.Remat("0"))


OTHERS = {
    "accumulate": pr.Accumulate(2),
    "annealed": pr.AnnealedEMA(0.9),
    "bfloat16": pr.Precision("bfloat16"),
    "clip": pr.Clip(0.1),
    "data parallel": pr.DataParallel(2),
    "dropout": pr.Dropout(0.6),
    "ema": pr.EMA(0.9),
    "float16": pr.Precision("float16", init_scale=8.0),
    "microbatch": pr.Microbatch(2),
    "skip": pr.SkipNonFinite(),
    "swa": pr.SWA(),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_beside_another_wrapper_the_bits_are_those_of_the_other_alone(other, inside):
    """In both orders; what is around the forward pass is around its second run."""
    plain = pr.TrainStep(NESTED.module(), NESTED.loss, MOMENTUM)
    alone, remat = pr.wrap(plain, other), pr.Remat("*")
    both = pr.wrap(plain, remat, other) if inside else pr.wrap(plain, other, remat)
    first, second = alone.init(seed=1), both.init(seed=1)
    for seed in range(3):
        first, second = alone(first, NESTED.data(seed)), both(second, NESTED.data(seed))

    # The program says that parts run again.
    assert pr.digest(first.exclude("fingerprint")) == pr.digest(second.exclude("fingerprint"))


def test_a_model_s_own_checkpoints_drop_by_the_same_probability():
    """The second run is inside of what is around the first."""

    class Own(nn.Module):
        def __init__(self, *, again):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head, self.again = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1)), nn.Linear(8, 1), again

        def forward(self, x):
            inner = checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)
            return self.head(inner)

    def grads(*, again):
        step = pr.TrainStep(Own(again=again), lambda model, x: model(x).square().mean(), MOMENTUM)
        step = pr.wrap(step, pr.Dropout(0.5))
        return step.grad(step.init(), torch.linspace(-1, 1, 24).view(4, 6)).grads

    assert all(torch.equal(grad, grads(again=True)[name]) for name, grad in grads(again=False).items())
