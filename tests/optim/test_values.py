"""The optimizers of our own as values: what they take, what they refuse, what memory layout does to them."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import purerun as pr
from purerun.identity import read_bytes
from purerun.optim import SGD, Adagrad, Adam, AdamW, Bucket, RMSprop, Torch
from purerun.optim.optimizer import owned

NATIVE = {
    "sgd": (SGD(lr=0.1, momentum=0.9, weight_decay=0.1), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "adam": (Adam(lr=0.1, amsgrad=True), torch.optim.Adam, {"amsgrad": True}),
    "adamw": (AdamW(lr=0.1), torch.optim.AdamW, {}),
    "adagrad": (
        Adagrad(lr=0.1, initial_accumulator_value=0.2),
        torch.optim.Adagrad,
        {"initial_accumulator_value": 0.2},
    ),
    "rmsprop": (RMSprop(lr=0.1, momentum=0.5, centered=True), torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
}
each = pytest.mark.parametrize("row", NATIVE.values(), ids=NATIVE.keys())


def numbers(shape, turn=0):
    return torch.arange(torch.Size(shape).numel()).double().add(turn).sin().reshape(shape)


def run(optimizer, params, grads, steps=3):
    slots = optimizer.init(params)
    for _ in range(steps):
        params, slots = optimizer.update(params, grads, slots)
    return params, slots


@each
@pytest.mark.parametrize(
    "odd",
    [
        lambda grad: grad.t().contiguous().t(),  # a transposed gradient, as of a matrix product
        lambda grad: torch.stack([grad, grad], -1)[..., 0],  # every second number in memory
        lambda grad: grad.mean(0, keepdim=True).expand(grad.shape),  # rows that are one memory
        lambda grad: grad.mean().expand(grad.shape),  # what the derivative of a sum is
    ],
    ids=["transposed", "strided", "rows", "number"],
)
def test_layout_of_gradients_does_not_matter(row, odd):
    """A gradient that lies otherwise in memory than its parameter counts by its values."""
    optimizer = row[0]
    params, grad = {"w": numbers((4, 3)).float()}, odd(numbers((4, 3), 1).float())
    expected, _ = run(optimizer, params, {"w": grad.clone(memory_format=torch.contiguous_format)})
    actual, _ = run(optimizer, params, {"w": grad})

    assert not grad.is_contiguous()
    assert torch.equal(expected["w"], actual["w"])


@each
@pytest.mark.parametrize(
    "odd",
    [
        lambda param: param.contiguous(memory_format=torch.channels_last),
        lambda param: torch.stack([param, param], -1)[..., 1],
        lambda param: param.transpose(0, 1),
    ],
    ids=["channels last", "strided", "transposed"],
)
def test_layout_of_parameters_and_slots_does_not_matter(row, odd):
    """Parameters of any layout, with contiguous slots and gradients, move by their values; in place, too."""
    optimizer = row[0]
    plain = {"w": numbers((2, 2, 3, 3)).float()}
    strange = {"w": odd(plain["w"])}
    plain = {"w": strange["w"].clone(memory_format=torch.contiguous_format)}
    grads = {"w": numbers((2, 2, 3, 3), 1).float()}
    expected, kept = run(optimizer, plain, grads)
    params, slots = {"w": strange["w"].clone(memory_format=torch.preserve_format)}, owned(optimizer.init(plain))
    params["w"] = torch.empty_strided(strange["w"].shape, strange["w"].stride()).copy_(strange["w"])
    for _ in range(3):
        optimizer.write(params, grads, slots, [Bucket(("w",), optimizer.hyper())])

    # Not bit for bit: a kernel rounds the last few numbers in memory, its vector's rest, otherwise.
    torch.testing.assert_close(params, expected)
    torch.testing.assert_close(slots, kept)


@each
def test_complex_parameters(row):
    """Where torch has no fused kernel, its single-tensor form is what runs, with its bits."""
    optimizer, cls, options = row
    params = {
        "z": torch.complex(numbers((5,)), numbers((5,), 2)),
        "y": torch.complex(numbers((2, 2)), numbers((2, 2), 1)),
    }
    stands = {name: param.clone() for name, param in params.items()}
    extra = {"foreach": True} if cls is torch.optim.RMSprop else {"foreach": False}
    oracle, slots = cls(list(stands.values()), lr=0.1, **options, **extra), optimizer.init(params)
    for turn in range(6):
        for stand in stands.values():
            stand.grad = stand * (0.5 + turn)
        oracle.step()
        params, slots = optimizer.update(params, {name: param * (0.5 + turn) for name, param in params.items()}, slots)

        assert all(torch.equal(stands[name], params[name]) for name in params), turn


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch's own Adagrad
@pytest.mark.parametrize(
    ("optimizer", "cls", "options"),
    [(SGD(lr=0.1), torch.optim.SGD, {}), (Adagrad(lr=0.1), torch.optim.Adagrad, {})],
)
def test_sparse_gradients(optimizer, cls, options):
    """Sparse gradients go where torch's own optimizers take them."""
    params = {"w": numbers((4, 3)).float()}
    stand = params["w"].clone()
    oracle, slots = cls([stand], lr=0.1, **options), optimizer.init(params)
    for turn in range(4):
        grad = (numbers((4, 3), turn) * torch.tensor([[1.0], [0.0], [1.0], [0.0]])).float().to_sparse(1)
        stand.grad = grad
        oracle.step()
        params, slots = optimizer.update(params, {"w": grad}, slots)

        assert torch.equal(stand, params["w"])


@each
def test_several_dtypes_in_one_update(row):
    """An update takes parameters of several dtypes; each moves as alone."""
    optimizer = row[0]
    params = {name: numbers((3, 2)).to(getattr(torch, name)) for name in ("float32", "float64", "bfloat16")}
    together, _ = run(optimizer, params, params)
    for name, param in params.items():
        alone, _ = run(optimizer, {name: param}, {name: param})

        assert torch.equal(alone[name], together[name])


NARROW = {
    "sgd": (SGD(lr=0.1), torch.optim.SGD, {"lr": 0.1}),
    "momentum": (SGD(lr=0.1, momentum=0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adam": (Adam(lr=0.1, eps=1e-3), torch.optim.Adam, {"lr": 0.1, "eps": 1e-3}),
    "adamw": (AdamW(lr=0.1, eps=1e-3), torch.optim.AdamW, {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.01}),
    "adagrad": (Adagrad(lr=0.1), torch.optim.Adagrad, {"lr": 0.1}),
}


@pytest.mark.parametrize(("optimizer", "cls", "options"), NARROW.values(), ids=NARROW)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [5, 16, 37, 1000])
def test_sixteen_bits_move_as_in_torch_s_plain_form(optimizer, cls, options, dtype, size):
    """Not as in its fused one, which may be wrong itself: to the rounding of the dtype."""
    if dtype == torch.float16 and cls in (torch.optim.Adam, torch.optim.AdamW):
        pytest.skip("squares underflow in float16, and torch's two forms differ by how")
    start = numbers((size,)).to(dtype)
    stand, params = torch.nn.Parameter(start.clone()), {"w": start.clone()}
    oracle, slots = cls([stand], **options, foreach=False), optimizer.init(params)
    for turn in range(4):
        stand.grad = (numbers((size,), turn) + 0.5).to(dtype)
        oracle.step()
        params, slots = optimizer.update(params, {"w": stand.grad.clone()}, slots)

    assert not torch.equal(start, params["w"])
    assert torch.allclose(stand.detach().float(), params["w"].float(), rtol=0.03, atol=0.03)


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=4),
    lr=st.floats(0, 10),
    momentum=st.floats(0, 1),
    dampening=st.floats(-1, 1),
    decay=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_sgd_equals_torch_for_any_options(shapes, lr, momentum, dampening, decay, dtype):
    """Whatever the shapes, dtypes and hyper-parameters, empty tensors included, SGD has torch's bits."""
    options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": decay}
    same_as_torch(SGD(**options), torch.optim.SGD, shapes, dtype, options)


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=4),
    lr=st.floats(0, 10),
    beta1=st.floats(0, 0.9999),
    beta2=st.floats(0, 0.9999),
    eps=st.floats(0, 1),
    decay=st.floats(0, 1),
    amsgrad=st.booleans(),
    decoupled=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_adam_equals_torch_for_any_options(shapes, lr, beta1, beta2, eps, decay, amsgrad, decoupled, dtype):
    """Whatever the shapes, dtypes and hyper-parameters, Adam and AdamW have torch's bits."""
    options = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay, "amsgrad": amsgrad}
    ours, theirs = (AdamW, torch.optim.AdamW) if decoupled else (Adam, torch.optim.Adam)
    same_as_torch(ours(**options), theirs, shapes, dtype, options)


def same_as_torch(optimizer, cls, shapes, dtype, options):
    params = {str(place): numbers(shape, place).to(dtype) for place, shape in enumerate(shapes)}
    stands = {name: torch.nn.Parameter(param.clone()) for name, param in params.items()}
    # torch 2.13's fused SGD does nothing to larger tensors of 16 bits.
    fused = cls is not torch.optim.SGD or dtype not in (torch.bfloat16, torch.float16)
    oracle, slots = cls(list(stands.values()), **options, fused=fused), optimizer.init(params)
    for turn in range(4):
        for stand in stands.values():
            stand.grad = (stand.detach() + turn).cos()
        oracle.step()
        params, slots = optimizer.update(params, {name: (param + turn).cos() for name, param in params.items()}, slots)

        assert all(read_bytes(stands[name]) == read_bytes(params[name]) for name in params)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: SGD(lr=-0.1), ValueError, "SGD.lr=-0.1 is out of range"),
        (lambda: SGD(lr=float("nan")), ValueError, "SGD.lr=nan is out of range"),
        (lambda: SGD(lr=torch.tensor(0.1)), TypeError, "expected SGD.lr to be a number, got tensor"),
        (lambda: SGD(lr=True), TypeError, "expected SGD.lr to be a number, got True"),
        (lambda: SGD(nesterov=1), TypeError, "expected SGD.nesterov to be True or False, got 1"),
        (lambda: SGD(nesterov=True), ValueError, "expected momentum > 0 and dampening == 0"),
        (lambda: Adam(betas=(0.9, 1.0)), ValueError, "both lie in"),
        (lambda: Adam(betas=0.9), TypeError, "expected Adam.betas to be two floats, got 0.9"),
        (lambda: Adagrad(initial_accumulator_value=-1.0), ValueError, "out of range"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, error, said):
    """Options are checked when the value is made."""
    with pytest.raises(error, match=said):
        make()


def test_arguments_of_an_update_are_checked():
    """A gradient that is missing or too small is an error: a kernel would read past its end."""
    sgd, params = SGD(), {"w": torch.zeros(3), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"gradient of each parameter's shape, got none such for \['w'\]"):
        sgd.update(params, {"w": torch.zeros(2), "b": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match=r"got none such for \['b'\]"):
        sgd.update(params, {"w": torch.zeros(3)}, {})
    with pytest.raises(KeyError, match=r"expected hyper-parameters among \['lr', .*got \['beta'\]"):
        sgd.update(params, params, {}, {"beta": 0.1})


MOVING = {
    "sgd": (SGD(lr=0.1, momentum=0.9, dampening=0.25), torch.optim.SGD, {"momentum": 0.9, "dampening": 0.25}),
    "nesterov": (SGD(lr=0.1, momentum=0.9, nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (RMSprop(lr=0.1, momentum=0.5), torch.optim.RMSprop, {"momentum": 0.5}),
}


@pytest.mark.parametrize("row", MOVING.values(), ids=MOVING.keys())
@pytest.mark.parametrize("schedule", [(0.0, 0.0, 0.9, 0.5), (0.9, 0.0, 0.0, 0.5, 0.5), (0.0,)], ids=str)
@pytest.mark.parametrize("form", ["write", "numbers", "tensors"])
def test_momentum_may_rest(row, schedule, form):
    """Where a schedule makes the momentum 0 the buffer rests, and its first step may be a late one."""
    optimizer, cls, options = row
    params = {"w": numbers((4, 3))}
    stand, slots = params["w"].clone(), optimizer.init(params)
    kernel = {"foreach": True} if cls is torch.optim.RMSprop else {"fused": True}
    oracle = cls([stand], lr=0.1, **options, **kernel)
    for turn, momentum in enumerate(schedule):
        if cls is torch.optim.RMSprop and "momentum_buffer" not in oracle.state[stand]:
            oracle.state[stand].update(  # torch makes it in the first step or never
                step=torch.zeros(()), square_avg=torch.zeros_like(stand), momentum_buffer=torch.zeros_like(stand)
            )
        oracle.param_groups[0]["momentum"] = momentum
        stand.grad = (stand + turn).sin()
        oracle.step()
        grads = {"w": (params["w"] + turn).sin()}
        hyper = {**optimizer.hyper(), "momentum": momentum}
        if form == "write":
            params, slots = optimizer.update(params, grads, slots, hyper)
        else:
            leaves = {name: torch.tensor(value, dtype=torch.float64) for name, value in hyper.items()}
            buckets = [Bucket(("w",), hyper if form == "numbers" else leaves)]
            params, slots = optimizer.trace(params, grads, slots, buckets)

        slack = 0.0 if form == "write" else 1e-14
        torch.testing.assert_close(params["w"], stand, rtol=100 * slack, atol=slack)


@each
def test_numbers_are_leaves_by_name(row):
    """The hyper-parameters are floats by torch's names, betas one by one; counts and choices are none."""
    hyper = row[0].hyper()

    assert all(type(value) is float for value in hyper.values())
    assert {"lr", "weight_decay"} <= set(hyper)
    assert not {"betas", "amsgrad", "maximize", "initial_accumulator_value"} & set(hyper)


@each
def test_is_a_value(row):
    """It evolves, compares and hashes; 1 and 1.0 are one learning rate."""
    optimizer = row[0]

    assert attrs.evolve(optimizer, lr=1) == attrs.evolve(optimizer, lr=1.0)
    assert hash(attrs.evolve(optimizer, lr=1)) == hash(attrs.evolve(optimizer, lr=1.0))
    assert repr(attrs.evolve(optimizer, lr=1)) == repr(attrs.evolve(optimizer, lr=1.0))
    assert optimizer != attrs.evolve(optimizer, lr=0.25)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        optimizer.lr = 0.5


@each
def test_equals_the_generic_form(row):
    """The optimizers of our own and those made pure by `Torch` are the same function."""
    optimizer, cls, options = row
    kernel = {"foreach": True} if cls is torch.optim.RMSprop else {"fused": True}
    params, grads = {"w": numbers((4, 3)).float()}, {"w": numbers((4, 3), 1).float()}
    expected, _ = run(Torch(cls, lr=0.1, **options, **kernel), params, grads, steps=6)
    actual, _ = run(optimizer, params, grads, steps=6)

    assert torch.equal(expected["w"], actual["w"])


@pytest.mark.parametrize("make", [SGD, RMSprop], ids=["SGD", "RMSprop"])
def test_a_momentum_that_there_is_not_is_no_hyper_parameter(make):
    """Nobody would read it: a sweep over it, a schedule of it or a change by hand is refused."""
    assert "momentum" not in make(lr=0.1).hyper()
    assert "momentum" in make(lr=0.1, momentum=0.5).hyper()
    step = pr.TrainStep(torch.nn.Linear(2, 1), lambda model, x: model(x).mean(), make(lr=0.1), engine="func")
    with pytest.raises(ValueError, match="which the step has, got 'momentum'"):
        pr.wrap(step, pr.Vmap(2, hyper={"momentum": [0.9, 0.0]})).init()
    with pytest.raises(pr.StateError, match="got 'momentum'"):
        step.init().replace(hyper={"momentum": 0.9})
    with pytest.raises(ValueError, match="'momentum'"):
        attrs.evolve(step, schedule=[pr.schedule.Linear(0.1, 1.0, end=4, param="momentum")])


def test_a_momentum_of_another_step_is_told_and_not_used():
    """By neither engine: a state keeps it, and nobody reads it."""
    ends = []
    for engine in ("autograd", "func"):
        torch.manual_seed(0)
        model, x = torch.nn.Linear(2, 1), torch.ones(4, 2)

        def make(momentum, model=model, engine=engine):
            sgd = SGD(lr=0.1, momentum=momentum)
            return pr.TrainStep(model, lambda model, batch: model(batch).square().mean(), sgd, engine=engine)

        moving, plain = make(0.9), make(0.0)
        state = moving(moving(moving.init(), x), x)
        with pytest.warns(pr.step.StepChanged, match=r"momentum is 0\.9, and nobody reads it"):
            gone_on = list(pr.TrainLoop(plain, iters=5)(state, [x]))[-1]
        expected = list(pr.TrainLoop(plain, iters=5)(plain.adopt(state), [x]))[-1]
        assert torch.equal(gone_on["params", "weight"], expected["params", "weight"])
        ends.append(gone_on["params", "weight"])

    torch.testing.assert_close(*ends)
