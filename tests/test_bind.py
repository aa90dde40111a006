"""Bindings: a module runs on given tensors, and is left exactly as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from purerun.bind import Binding, ModelError
from purerun.random import Key, keyed
from purerun.testing import MODELS
from purerun.testing.snapshot import of_module


def tensors(binding):
    """Clone a binding's own parameters and buffers."""
    params = {name: param.detach().clone() for name, param in binding.params.items()}
    return params, {name: buffer.detach().clone() for name, buffer in binding.buffers.items()}


class Remembering(nn.Module):
    """A module whose forward remembers in one of many ways."""

    def __init__(self, how):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.how = how
        self.count, self.history, self.table, self.cache = 0, [], {"a": 1}, torch.zeros(2)
        self.register_buffer("late", None)

    def forward(self, x):
        y = self.inner(x)
        match self.how:
            case "count":
                self.count += 1
            case "history":
                self.history.append(float(y.sum()))
            case "table":
                self.table["a"] = self.table["a"] + 1
            case "cache":
                self.cache += 1
            case "new":
                self.last = y
            case "inner":
                self.inner.calls = 1
            case "delete":
                del self.table
            case "empty buffer":
                self.late = torch.zeros(2)
            case "new buffer":
                self.register_buffer("later", torch.zeros(2))
            case "new module":
                self.extra = nn.Linear(2, 2)
        return y


class Rebinding(nn.Module):
    """A module that binds its buffer anew."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = nn.Linear(2, 2), how
        self.register_buffer("b", torch.zeros(2, 2))
        self.register_buffer("c", torch.ones(2, 2))

    def forward(self, x):
        y = self.inner(x)
        match self.how:
            case "batch":
                self.b = x
            case "graph":
                self.b = y
            case "twice":
                self.b = self.c = self.c + 1
            case "swap":
                self.b, self.c = self.c, self.b
            case "parameter":
                self.b = self.inner.weight.detach()
            case "expanded":
                self.b = torch.ones(1, 1).expand(2, 2)
            case "transposed":
                self.b = (self.c + torch.tensor([[1.0, 2.0], [3.0, 4.0]])).t()
            case "larger":
                self.b = torch.cat([self.b, self.b])
            case "double":
                self.b = self.b.double()
            case "none":
                self.b = None
        return y


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_bound_module_gives_what_functional_call_gives(case, training):
    """Outputs and new buffers are those of torch's own stateless call; the module is untouched."""
    module, other, batch = case.module(seed=1), case.module(seed=2), case.data()
    binding = Binding(module)
    params, buffers = tensors(Binding(other))
    looks = of_module(module, "model")
    reference = case.module(seed=3).train(training)
    expected_buffers = {name: buffer.clone() for name, buffer in buffers.items()}
    with torch.no_grad(), keyed(Key.of(0)):
        everything = {**params, **expected_buffers}
        expected = functional_call(reference, everything, (batch["x"],))
    with torch.no_grad(), keyed(Key.of(0)), binding(params, buffers, training=training) as model:
        given = model(batch["x"])

    assert torch.equal(expected, given)
    assert looks == of_module(module, "model")
    assert expected_buffers.keys() == buffers.keys()
    assert all(torch.equal(everything[name], buffers[name]) for name in buffers)


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_tied_tensors_stay_tied(case):
    """A tensor that stands in several places has one name; all places see the given one."""
    module = case.module()
    binding = Binding(module)
    params, buffers = tensors(binding)
    places = {id(param) for param in module.parameters()}
    with binding(params, buffers, training=True) as model:
        bound = {id(param) for param in model.parameters()}

    assert len(places) == len(binding.params) == len(bound)
    assert bound <= {id(param) for param in params.values()}


def test_flags_come_from_the_modules_own_train():
    """A part that `train()` leaves in evaluation mode stays so; flags are put back at the end."""
    frozen = next(case for case in MODELS if case.name == "frozen backbone").module()
    frozen.head.eval()
    looks = of_module(frozen, "model")
    binding = Binding(frozen)
    for training in (True, False):
        with binding(*tensors(binding), training=training) as model:
            assert (training, False) == (model.head.training, model.backbone.training)

    assert looks == of_module(frozen, "model")


@pytest.mark.parametrize(
    "how", ["count", "history", "table", "cache", "new", "inner", "delete", "empty buffer", "new buffer", "new module"]
)
def test_a_forward_that_remembers_is_refused(how):
    """The error names the attribute and the remedy, and the module is as it was."""
    module = Remembering(how)
    looks = of_module(module, "model")
    binding = Binding(module)
    with (
        pytest.raises(ModelError, match="register_buffer") as error,
        binding(*tensors(binding), training=True) as model,
    ):
        model(torch.ones(2, 2))

    names = {
        "new": "last",
        "inner": "inner.calls",
        "delete": "table",
        "empty buffer": "late",
        "new buffer": "later",
        "new module": "extra",
    }
    assert f"`{names.get(how, how)}`" in str(error.value)
    assert looks == of_module(module, "model")


@pytest.mark.parametrize("how", ["batch", "graph", "twice", "swap", "parameter", "expanded", "transposed"])
def test_a_rebound_buffer_comes_out_as_a_value(how):
    """Its numbers in memory of its own, in the layout of the old one, without a graph."""
    module, x = Rebinding(how), torch.ones(2, 2)
    binding = Binding(module)
    params, buffers = tensors(binding)
    layout = {name: buffer.stride() for name, buffer in buffers.items()}
    with (
        torch.enable_grad(),
        binding({n: p.requires_grad_() for n, p in params.items()}, buffers, training=True) as model,
    ):
        model(x)
        expected = {"b": model.b.detach().clone(), "c": model.c.detach().clone()}
    x.fill_(7)
    for param in params.values():
        param.detach().fill_(7)
    buffers_before = {name: buffer.clone() for name, buffer in buffers.items()}

    assert all(torch.equal(expected[name], buffers[name]) for name in expected)
    assert layout == {name: buffer.stride() for name, buffer in buffers.items()}
    assert not any(buffer.requires_grad for buffer in buffers.values())
    buffers["b"].fill_(9)
    assert torch.equal(buffers_before["c"], buffers["c"])


@pytest.mark.parametrize("how", ["larger", "double", "none"])
def test_a_buffer_keeps_its_shape_and_dtype(how):
    """A state never changes its shape, so a buffer that does is refused by name."""
    binding = Binding(Rebinding(how))
    with pytest.raises(ModelError, match="keep the buffer `b`"), binding(*tensors(binding), training=True) as model:
        model(torch.ones(2, 2))


@pytest.mark.parametrize("missing", ["0.weight", "1.running_var", "1.weight"])
def test_a_missing_tensor_leaves_the_module_alone(missing):
    """Whatever the given tensors lack, the module keeps its own."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    looks = of_module(module, "model")
    binding = Binding(module)
    params, buffers = tensors(binding)
    params.pop(missing, None)
    buffers.pop(missing, None)
    with pytest.raises(KeyError, match=missing), binding(params, buffers, training=True):
        pass

    assert looks == of_module(module, "model")


def test_an_error_inside_leaves_the_module_alone():
    """Also when the forward had written into buffers and remembered things before it raised."""
    module = Remembering("history")
    looks = of_module(module, "model")
    binding = Binding(module)
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), binding(*tensors(binding), training=True) as model:
            model(torch.ones(2, 2))
            raise error

    assert looks == of_module(module, "model")


def test_the_forward_may_not_write_into_parameters():
    """What a forward does to a parameter would be lost or kept by accident: it is refused by name."""
    module = nn.Linear(2, 2)
    binding = Binding(module)
    with (
        pytest.raises(ModelError, match="writes into `weight`"),
        torch.no_grad(),
        binding(*tensors(binding), training=True) as model,
    ):
        model.weight.clamp_(-0.1, 0.1)


class FullyShardedDataParallel(nn.Module):
    """A stand-in by the name of torch's class."""


def _compiled():
    # Building the wrapper compiles nothing.
    return torch.compile(nn.Linear(2, 1), backend="eager")


def _distributed():
    # The class refuses to be built without a process group; an instance is enough for the check.
    module = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(module)
    module.module = nn.Linear(2, 1)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(_distributed()), ["`0`", "DistributedDataParallel", "model.module"]),
        (_distributed, ["DistributedDataParallel", "silently not be reduced", "model.module"]),
        (lambda: nn.DataParallel(nn.Linear(2, 1)), ["DataParallel", "model.module"]),
        (FullyShardedDataParallel, ["FullyShardedDataParallel", "before it was sharded"]),
        (_compiled, ["OptimizedModule", "before torch.compile"]),
        (lambda: torch.jit.script(nn.Linear(2, 1)), ["RecursiveScriptModule", "before torch.jit.script"]),
        (lambda: nn.LazyLinear(2), ["`weight`", "run the model once"]),
        (lambda: nn.Linear(2, 1, device="meta"), ["`weight`", "meta device"]),
        (lambda: torch.relu, ["builtin_function_or_method", "pass the module itself"]),
        (lambda: None, ["NoneType", "expected an nn.Module"]),
    ],
    ids=["inner DDP", "DDP", "DataParallel", "FSDP", "compiled", "scripted", "lazy", "meta", "function", "none"],
)
def test_modules_that_would_train_wrongly_are_refused(make, words):
    """Each with the reason and the remedy."""
    with pytest.raises(ModelError) as error:
        Binding(make())

    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters_are_refused(register):
    """They would never run, because the state's tensors are others."""
    module = nn.Linear(2, 1)
    getattr(module.bias, register)(lambda grad: None)
    with pytest.raises(ModelError, match="`bias` has one"):
        Binding(module)


def test_hooks_on_modules_run():
    """Forward hooks are part of the module."""
    seen, module = [], nn.Linear(2, 1)
    module.register_forward_hook(lambda inner, given, output: seen.append(output.shape))
    binding = Binding(module)
    with binding(*tensors(binding), training=True) as model:
        model(torch.ones(3, 2))

    assert [torch.Size([3, 1])] == seen
