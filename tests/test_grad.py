"""Gradients: those of a plain backward pass, by both engines, and clear refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import purerun as pr
from purerun.bind import Binding, ModelError
from purerun.grad import Grads, Loss, LossError, compute, reduce
from purerun.owned import overlaps, unshared
from purerun.random import Key, keyed
from purerun.step import NonFiniteLoss
from purerun.testing import MODELS, random_case
from purerun.testing.snapshot import of_module

ENGINES = ("autograd", "func")
CASES = {case.name: case for case in (*MODELS, *(random_case(seed) for seed in range(8)))}


def ask(module, loss, batch, *, engine="autograd", key=7, trained=None, unused="raise"):
    """Compute gradients of a module's own weights."""
    binding = Binding(module)
    params = {name: param.detach().clone() for name, param in binding.params.items()}
    buffers = {name: buffer.detach().clone() for name, buffer in binding.buffers.items()}
    trained = trained or tuple(name for name, param in binding.params.items() if param.requires_grad)
    with keyed(Key.of(key)):
        return compute(engine, binding, loss, batch, params, buffers, trained, unused=unused)


def plain(module, loss, batch, key=7):
    """Compute gradients as a plain loop does, and leave them in the module."""
    module.train()
    module.zero_grad()
    with keyed(Key.of(key)):
        total = loss(module, batch)
        total.backward()
    return float(total.detach()), {name: param.grad for name, param in module.named_parameters()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_are_those_of_a_plain_backward_pass(case):
    """Bit for bit, with the same loss, the same buffers afterwards, and the module untouched."""
    module, reference, batch = case.module(), case.module(), case.data()
    looks = of_module(module, "model")
    grads = ask(module, case.loss, batch)
    loss, expected = plain(reference, case.loss, batch)

    assert loss == float(grads.metrics["loss"])
    assert {name for name, grad in expected.items() if grad is not None} == set(grads.grads)
    assert all(torch.equal(expected[name], grad) for name, grad in grads.grads.items())
    assert all(torch.equal(buffer, grads.buffers[name]) for name, buffer in reference.named_buffers())
    assert len(batch["y"]) == grads.weight
    assert looks == of_module(module, "model")


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.func], ids=lambda case: case.name)
def test_both_engines_agree(case):
    """In double precision to 1e-12, dropout and new buffers included."""
    module, batch = case.module().double(), case.data()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    first, second = (ask(module, case.loss, batch, engine=engine) for engine in ENGINES)

    assert first.grads.keys() == second.grads.keys()
    for a, b in ((first.grads, second.grads), (first.buffers, second.buffers), (first.metrics, second.metrics)):
        assert all(torch.allclose(a[name].double(), b[name].double(), rtol=1e-12, atol=1e-12) for name in a)


@pytest.mark.parametrize("engine", ENGINES)
def test_chance_is_keyed(engine):
    """The same key gives the same dropout, another key another."""
    case = next(case for case in MODELS if case.name == "dropout")
    first, again, other = (ask(case.module(), case.loss, case.data(), engine=engine, key=key) for key in (1, 1, 2))

    assert all(torch.equal(first.grads[name], again.grads[name]) for name in first.grads)
    assert not torch.equal(first.grads["1.weight"], other.grads["1.weight"])


def test_activation_checkpointing_recomputes_on_the_given_weights():
    """Other weights than the module's own: the second forward pass must see them too."""
    block = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.4), nn.Linear(4, 2))

    def saving(model, x):
        return checkpoint(model, x, use_reentrant=False).square().mean()

    def whole(model, x):
        return model(x).square().mean()

    binding, x = Binding(block), torch.randn(5, 3)
    params = {name: torch.randn_like(param) for name, param in block.named_parameters()}
    results = []
    for loss in (saving, whole):
        with keyed(Key.of(3)):
            results.append(compute("autograd", binding, loss, x, dict(params), {}, tuple(params)).grads)

    assert all(torch.equal(results[0][name], results[1][name]) for name in params)


@pytest.mark.parametrize("outside", [True, False], ids=["with a layer before it", "alone"])
def test_reentrant_checkpointing_is_refused(outside):
    """It cannot give gradients by parameters, and the error says so instead of giving wrong ones."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))

    def loss(model, x):
        seen = model[0](x) if outside else x.clone().requires_grad_()
        return checkpoint(model[1], seen, use_reentrant=True).square().mean()

    with pytest.raises((RuntimeError, LossError), match="use_reentrant=True" if outside else "do not reach it"):
        ask(net, loss, torch.randn(5, 3))


def test_the_parameters_carry_no_flags_afterwards():
    """Nor after an error."""
    binding = Binding(nn.Linear(2, 1))
    params = {name: param.detach().clone() for name, param in binding.params.items()}
    compute("autograd", binding, lambda model, x: model(x).mean(), torch.ones(3, 2), params, {}, tuple(params))
    with pytest.raises(ZeroDivisionError):
        compute("autograd", binding, lambda model, x: 1 / 0, torch.ones(3, 2), params, {}, tuple(params))

    assert not any(param.requires_grad for param in params.values())


def test_gradients_are_found_under_no_grad():
    """The caller's grad mode does not matter."""
    with torch.no_grad():
        grads = ask(nn.Linear(2, 1), lambda model, x: model(x).mean(), torch.ones(3, 2))

    assert [[1.0, 1.0]] == grads.grads["weight"].tolist()


def test_only_the_chosen_parameters_are_differentiated():
    """The others are constants."""
    grads = ask(nn.Linear(2, 1), lambda model, x: model(x).mean(), torch.ones(3, 2), trained=("bias",))

    assert {"bias": [1.0]} == {name: grad.tolist() for name, grad in grads.grads.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unused_parameter_can_count_as_zero(engine):
    """When that is asked for."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    grads = ask(net, lambda model, x: model[0](x).mean(), torch.ones(3, 2), engine=engine, unused="zero")

    assert [[[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]] == [grads.grads[name].tolist() for name in ("1.weight", "1.bias")]
    assert float(grads.grads["0.weight"].abs().sum()) > 0


def test_an_unused_parameter_is_named():
    """The plain loop would leave it alone in silence."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(LossError, match=r"2 of 4 do not reach it: `1\.weight`, `1\.bias`; freeze them"):
        ask(net, lambda model, x: model[0](x).mean(), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda model, x: model(x), "to be a scalar, got a tensor of shape \\[3, 2\\]; reduce it"),
        (
            lambda model, x: model(x).mean().item(),
            "scalar tensor, a dict of named scalar tensors or pr.Loss.*got float",
        ),
        (lambda model, x: None, "got NoneType"),
        (lambda model, x: {}, "none of its terms \\[\\] depends on a trained parameter"),
        (lambda model, x: {"a": torch.ones(())}, "none of its terms \\['a'\\]"),
        (lambda model, x: model(x).mean().detach(), "depend on a trained parameter, but it has no gradient"),
        (lambda model, x: {"loss": model(x)}, "to be a scalar, got a tensor of shape"),
        (lambda model, x: {"loss": 1.0}, "to be a scalar tensor, got float"),
        (lambda model, x: {"ce": model(x)}, "the loss term 'ce' to be a scalar"),
        (lambda model, x: Loss(model(x), 3), "the loss's sum to be a scalar"),
    ],
    ids=[
        "vector",
        "number",
        "none",
        "empty",
        "constant",
        "detached",
        "dict of vector",
        "dict of number",
        "term",
        "Loss",
    ],
)
def test_what_cannot_be_minimised_is_refused(loss, words):
    """Each error says what was expected, what came, and what to do."""
    with pytest.raises(LossError, match=words):
        ask(nn.Linear(2, 2), loss, torch.ones(3, 2))


class TestReducing:
    """What a loss function may return."""

    def test_a_scalar_weighs_as_many_as_the_batch_has_samples(self):
        """So that windows and shards of unequal batches add up to the big batch."""
        total, weight, terms = reduce(torch.ones((), requires_grad=True), {"x": torch.zeros(5, 2)})

        assert (1.0, 5, {}) == (total.item(), weight, terms)

    def test_one_element_is_a_scalar(self):
        """A loss of shape [1] is taken."""
        assert torch.Size([]) == reduce(torch.ones(1, requires_grad=True), torch.zeros(2))[0].shape

    @pytest.mark.parametrize(
        "weight",
        [3, 3.0, torch.tensor(3), torch.tensor([3.0]), torch.tensor(3, dtype=torch.uint8), torch.tensor(3).bfloat16()],
        ids=["int", "float", "int64", "one element", "uint8", "bfloat16"],
    )
    def test_a_weight_is_a_number_whatever_it_was(self, weight):
        """So that sums of many are exact."""
        total, found, _ = reduce(Loss(torch.tensor(6.0, requires_grad=True), weight), None)

        assert (2.0, 3.0) == (total.item(), found)
        assert not isinstance(found, torch.Tensor)

    def test_a_true_weight_is_one(self):
        """A mask of one element."""
        assert 1 == reduce(Loss(torch.tensor(6.0, requires_grad=True), torch.tensor(True)), None)[1]

    @pytest.mark.parametrize("weight", [0, torch.tensor(0)], ids=["number", "tensor"])
    def test_what_counts_nothing_moves_nothing(self, weight):
        """Whatever its sum is: a window, a shard and a micro-batch leave it out as well."""
        value = torch.tensor(2.0, requires_grad=True)
        total, _, _ = reduce(Loss(value * 3, weight), None)

        assert 0.0 == total.item()
        assert 0.0 == torch.autograd.grad(total, value)[0].item()

    @pytest.mark.parametrize("engine", ["autograd", "func"])
    def test_a_large_weight_of_a_short_sum(self, engine):
        """It is not rounded to the dtype of the sum, where it would be infinite."""

        def loss(model, x):
            return Loss(model(x).sum().half(), torch.tensor(70000.0))

        step = pr.TrainStep(nn.Linear(2, 1), loss, pr.optim.SGD(lr=0.1), engine=engine)
        grads = step.grad(step.init(), torch.full((4, 2), 1000.0))

        assert grads.grads["weight"].flatten().tolist() == pytest.approx([4000 / 70000] * 2, rel=1e-2)
        assert grads.metrics["loss"].item() != 0

    @pytest.mark.parametrize("engine", ["autograd", "func"])
    def test_what_counts_nothing_and_is_no_number_is_told(self, engine):
        """Not hidden by its weight."""
        step = pr.TrainStep(
            nn.Linear(2, 1), lambda m, x: Loss(m(x).sum() * math.inf, torch.tensor(0.0)), pr.optim.SGD(), engine=engine
        )
        with pytest.raises(NonFiniteLoss):
            step(step.init(), torch.ones(4, 2))

    def test_a_weight_that_depends_on_parameters_is_a_constant(self):
        """It says how much a batch counts; nothing of its history stays in a window."""
        model, x = nn.Linear(2, 1), torch.ones(4, 2)

        def loss(model, x):
            return Loss(model(x).square().sum(), model.weight.square().sum() + 1)

        step = pr.wrap(pr.TrainStep(model, loss, pr.optim.SGD(lr=0.1)), pr.Accumulate(5), pr.Microbatch(2))
        state = step(step(step.init(), x), x)

        assert not any(leaf.requires_grad for _, leaf in pr.state.leaves(state, report=True))

    @pytest.mark.parametrize(
        ("weight", "said"),
        [
            (-1, "got -1"),
            (torch.tensor(-1.0), "got -1.0"),
            (math.inf, "got inf"),
            (torch.tensor(math.nan), "got nan"),
            ("three", "got 'three'"),
            (None, "got None"),
            (torch.ones(2), r"got a tensor of shape \[2\]"),
        ],
        ids=["negative", "negative tensor", "infinite", "nan", "text", "none", "vector"],
    )
    @pytest.mark.parametrize("engine", ["autograd", "func"])
    def test_a_weight_that_is_no_count_is_refused(self, engine, weight, said):
        """In words, by both engines."""
        step = pr.TrainStep(nn.Linear(2, 1), lambda m, x: Loss(m(x).sum(), weight), pr.optim.SGD(lr=0.1), engine=engine)
        with pytest.raises(LossError, match=f"finite number of at least 0, or a scalar tensor with one, {said}"):
            step(step.init(), torch.ones(4, 2))

    def test_terms_with_a_gradient_are_summed(self):
        """The others are only reported."""
        a, b, c = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True), torch.tensor(9.0)

        assert 3.0 == reduce({"a": a, "b": b, "c": c}, torch.zeros(2))[0].item()

    def test_a_term_called_loss_is_the_total(self):
        """Terms beside it are parts of it already."""
        a, b = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)

        assert 2.0 == reduce({"a": a, "loss": b}, torch.zeros(2))[0].item()

    def test_a_loss_says_its_own_weight(self):
        """The mean over its items is minimised."""
        total, weight, terms = reduce(Loss(torch.tensor(6.0, requires_grad=True), 3, hits=torch.tensor(2)), None)

        assert (2.0, 3, ["hits"]) == (total.item(), weight, list(terms))


def test_terms_are_reported_as_they_were():
    """A reported view of a parameter or of the batch does not follow what is written there later."""
    net, x = nn.Linear(2, 1, bias=False), torch.ones(3, 2)

    def loss(model, batch):
        return {"loss": model(batch).mean(), "weight": model.weight[0, 0], "seen": batch[0, 0]}

    binding = Binding(net)
    params = {"weight": net.weight.detach().clone()}
    grads = compute("autograd", binding, loss, x, params, {}, ("weight",))
    expected = float(params["weight"][0, 0])
    params["weight"].zero_()
    x.zero_()

    assert (expected, 1.0) == (float(grads.metrics["weight"]), float(grads.metrics["seen"]))
    assert not any(value.requires_grad for value in grads.metrics.values())


def test_grads_are_plain_values():
    """They can be made by hand, for steps of one's own."""
    assert (1.0, {}, {}, None) == ((made := Grads({})).weight, made.buffers, made.metrics, made.recompute)


class Aliased(nn.Module):
    """A module that keeps one of its weights in a plain list as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.kept = [self.layer.weight]

    def forward(self, x):
        return self.layer(x) + x @ self.kept[0].t()


def test_a_weight_reached_past_its_slot_is_refused():
    """It would be a constant, and the gradient silently wrong."""
    step = pr.TrainStep(Aliased(), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1))
    state = step.init(seed=0)

    with pytest.raises(ModelError, match=r"module's own \['layer.weight'\]"):
        step(state, torch.ones(3, 2))


class Given(torch.autograd.Function):
    """The product of a weight and a batch, whose backward gives back what it was given, by some name."""

    @staticmethod
    def forward(ctx, weight, x, name):
        ctx.name = name
        ctx.save_for_backward(weight, x)
        return (weight * x).sum()

    @staticmethod
    def backward(ctx, _):
        weight, x = ctx.saved_tensors
        return NAMES[ctx.name](x), weight, None


@torch.library.custom_op("tests::given", mutates_args=())
def product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Compute the same, as an operator of one's own."""
    return (weight * x).sum()


product.register_autograd(
    lambda ctx, _: (ctx.saved_tensors[1].view(-1), ctx.saved_tensors[0].detach()),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def hooked(weight, x):
    """Compute the same, with a hook that gives back the batch."""
    own = weight * 1
    own.register_hook(lambda _: x.detach())
    return (own * x.clone()).sum()


NAMES = {
    "itself": lambda x: x,
    "a view": lambda x: x.view(-1),
    "detached": lambda x: x.detach(),
    "data": lambda x: x.data,
    "a view of a view": lambda x: x.view(3, 1).view(3),
}


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("name", [*NAMES, "operator", "hook"])
@pytest.mark.parametrize(
    "wrappers",
    [
        [],
        [pr.Clip(0.1)],
        [pr.Clip(value=0.1)],
        [pr.Clip(adaptive=0.1)],
        [pr.Precision("float16", init_scale=8.0)],
        [pr.Microbatch(1), pr.Clip(0.1)],
        [pr.Masters()],
    ],
    ids=lambda wrappers: " ".join(map(repr, wrappers)),
)
def test_a_gradient_that_is_the_batch_itself_is_not_written_into(wrappers, name, first):
    """Nor one that is a weight: both are somebody else's; from whatever step on."""
    dtype = torch.bfloat16 if wrappers == [pr.Masters()] else torch.float32
    turns = iter(range(99))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=dtype))
            self.other = nn.Parameter(torch.tensor([4.0, 5.0, 6.0], dtype=dtype))

        def forward(self, x):
            if next(turns) < first:
                return (self.one * x).sum() + (self.other * self.one).sum()
            if name == "operator":
                return product(self.one, x) + product(self.other, self.one)
            if name == "hook":
                return hooked(self.one, x) + (self.other * self.one).sum()
            return Given.apply(self.one, x, name) + Given.apply(self.other, self.one, name)

    step = pr.wrap(pr.TrainStep(Net(), lambda m, x: m(x).float(), pr.optim.SGD(lr=0.1)), *wrappers)
    state, x = step.init(), torch.tensor([10.0, 20.0, 30.0], dtype=dtype)
    before = pr.digest(state)
    for _ in range(first + 2):
        step(state, x)

    assert x.tolist() == [10.0, 20.0, 30.0]
    assert before == pr.digest(state)


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_gradients_that_nobody_else_holds_are_not_copied(case):
    """Those of layers, views included, may be written into as they are."""
    step = pr.TrainStep(case.module(), case.loss, pr.optim.SGD(lr=0.1))
    grads = [*step.grad(step.init(), case.data()).grads.values()]
    apart = [grad for grad in grads if not overlaps(grad)]

    assert not any(torch._C._is_cow_tensor(grad) for grad in grads)
    assert apart
    assert all(own is grad for own, grad in zip(unshared(apart), apart, strict=True))
