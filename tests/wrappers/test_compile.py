"""Compiled halves: close to the eager step, exact to themselves, and made once."""

from __future__ import annotations

import inspect

import attrs
import pytest
import torch
from torch import nn
from torch._inductor.cpp_builder import cpp_compiler_search
from torch._inductor.exc import InductorError
from torch.nn import functional as F

import purerun as pr
from purerun.bind import ModelError
from purerun.testing import MODELS, check_purity, check_values_equal_lease
from purerun.wrappers import graph
from purerun.wrappers.graph import CompileError

MOMENTUM = pr.optim.SGD(lr=0.1, momentum=0.9)
SCHEDULE = [pr.schedule.Linear(0.1, end=4, by="iter"), pr.schedule.MultiStep([1], by="epoch")]
BOUND = 1e-6
"""Of the largest difference from the eager step after a few steps of these models, in float32."""


def net():
    """Make a net with batch norm and two dropouts of different sizes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(8, 4),
        nn.Dropout(0.5),
        nn.Linear(4, 3),
    )


def loss(model, batch):
    """Compute a loss with its own weight, and terms of two kinds."""
    errors = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    return pr.Loss(errors.sum(), len(errors), worst=pr.Term(errors.max(), "max"), scale=batch["scale"])


def batch(seed=0, samples=16):
    """Make samples, and a number that is no tensor."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator)
    return {"x": x, "y": torch.randint(3, (samples,), generator=generator), "scale": 0.5}


def make(*wrappers, optimizer=MOMENTUM, model=None, loss=loss, **options):
    """Make a step, plain or wrapped."""
    return pr.wrap(pr.TrainStep(model or net(), loss, optimizer, **options), *wrappers)


def far(first, second):
    """Measure the largest difference of two states' tensors."""
    return max(
        (leaf.double() - second[part][name].double()).abs().max().item()
        for part in ("params", "buffers")
        for name, leaf in first[part].items()
    )


@pytest.fixture
def made(monkeypatch):
    """Count the graphs that inductor compiles."""
    calls, real = [], torch._inductor.compile
    monkeypatch.setattr(torch._inductor, "compile", lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


@pytest.mark.parametrize("what", ["grad", "step"])
def test_it_follows_the_eager_step_and_is_made_once(made, what):
    """Through schedules, other seeds, rates and epochs; masks, terms and rates are the eager ones."""
    plain, step = make(schedule=SCHEDULE), make(pr.Compile(what), schedule=SCHEDULE)
    first, second = plain.init(seed=1), step.init(seed=1)
    for seed in range(6):
        if seed == 3:
            changes = {"hyper": {"lr": 0.05, "momentum": 0.5}, "seed": 77, "epoch": 1}
            first, second = first.replace(changes), second.replace(changes)
        first, second = plain(first, batch(seed)), step(second, batch(seed))

        assert first["metrics"].names() == second["metrics"].names()
        assert first["metrics", "lr"] == second["metrics", "lr"]
        assert torch.allclose(first["metrics", "worst"], second["metrics", "worst"], atol=BOUND)
    assert far(first, second) < BOUND
    assert (1 if what == "grad" else 2) == len(made)


def test_it_obeys_the_laws_of_a_step(made):
    """Pure, the same bits from both halves, leased or not, and from another step that is compiled anew."""
    make_loop = lambda: pr.TrainLoop(make(pr.Compile(), pr.EMA(0.9), schedule=SCHEDULE), iters=3)  # noqa: E731
    loop, loader = make_loop(), [batch(seed) for seed in range(3)]
    state = loop.step.init(seed=1)
    check_purity(loop.step, state, loader[0])
    check_values_equal_lease(loop, state, loader)
    *_, first = loop(state, loader)
    *_, again = make_loop()(state, loader)

    assert pr.digest(first) == pr.digest(again)
    assert 4 == len(made)  # two steps of two halves


def test_a_smaller_last_batch_takes_one_graph_more(made):
    """One for its gradients; the update is the same."""
    step = make(pr.Compile())
    state = step.init()
    for samples in (16, 5, 16, 5):
        state = step(state, batch(samples=samples))

    assert 3 == len(made)
    assert 4 == int(state["iter"])


def test_ever_new_shapes_are_an_error():
    """Not an afternoon of compiling."""
    step = make(pr.Compile("grad", graphs=1))
    state = step(step.init(), batch())
    with pytest.raises(CompileError, match="expected at most 1 graphs for one half of a step"):
        step(state, batch(samples=5))


@pytest.mark.parametrize("name", ["tied embedding", "rebound buffer"])
def test_models_with_something_special(name):
    """A sample of the table of models; all but two were tried when this was written."""
    case = next(case for case in MODELS if case.name == name)
    plain, step = (make(*wrap, model=case.module(), loss=case.loss) for wrap in ((), (pr.Compile(),)))
    first, second = plain.init(), step.init()
    for seed in range(2):
        first, second = plain(first, case.data(seed)), step(second, case.data(seed))

    assert far(first, second) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("what", ["grad", "step"])
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_each_model_of_the_table(case, what):
    """Close to the eager step, or refused for a reason."""
    plain = make(model=case.module(), loss=case.loss)
    step = make(pr.Compile(what), model=case.module(), loss=case.loss)
    first, second = plain.init(), step.init()
    try:
        for seed in range(3):
            first, second = plain(first, case.data(seed)), step(second, case.data(seed))
    except CompileError:
        assert case.name in ("batch norm by mean", "activation checkpointing")
        return

    assert far(first, second) < BOUND


def test_wrappers_around_it_and_in_it():
    """Clipping inside; micro-batches, an accumulation and an average, which decide by counters, around."""
    around = (pr.Microbatch(2), pr.Accumulate(2), pr.EMA(0.5))
    plain, step = (
        make(*wrappers, optimizer=pr.optim.AdamW(lr=0.01), model=MODELS[0].module(), loss=MODELS[0].loss)
        for wrappers in ((pr.Clip(norm=0.5), *around), (pr.Clip(norm=0.5), pr.Compile(), *around))
    )
    first, second = plain.init(), step.init()
    for seed in range(4):
        first, second = plain(first, batch(seed)), step(second, batch(seed))

    assert far(first, second) < BOUND
    assert far({"params": first["ema", "params"], "buffers": {}}, {"params": second["ema", "params"]}) < BOUND
    assert first["metrics"].names() == second["metrics"].names()


ROUNDED = 1e-3  # in bfloat16 and float16 a graph rounds less often than the eager step
INSIDE = {
    "bfloat16": (pr.Precision("bfloat16"), ROUNDED),
    "float16": (pr.Precision("float16"), ROUNDED),
    "clip value": (pr.Clip(value=0.1), BOUND),
    "clip adaptive": (pr.Clip(adaptive=0.1), BOUND),
}
AROUND = {
    "bfloat16": (pr.Precision("bfloat16"), ROUNDED),
    "float16": (pr.Precision("float16"), ROUNDED),
    "skip": (pr.SkipNonFinite(), BOUND),
    "shards": (pr.DataParallel(shards=2), BOUND),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrappers", "bound"),
    [
        *(
            pytest.param((wrapper, pr.Compile()), bound, id=f"{name} inside")
            for name, (wrapper, bound) in INSIDE.items()
        ),
        *(
            pytest.param((pr.Compile(), wrapper), bound, id=f"{name} around")
            for name, (wrapper, bound) in AROUND.items()
        ),
    ],
)
def test_more_of_them(wrappers, bound):
    """Each where it can stand."""
    alone = [wrapper for wrapper in wrappers if not isinstance(wrapper, pr.Compile)]
    plain, step = (make(*those, model=MODELS[0].module(), loss=MODELS[0].loss) for those in (alone, wrappers))
    first, second = plain.init(), step.init()
    for seed in range(3):
        first, second = plain(first, batch(seed)), step(second, batch(seed))

    assert far(first, second) < bound
    assert first["metrics"].names() == second["metrics"].names()


@attrs.frozen
class Deciding(pr.Wrapper):
    """A wrapper that looks at the loss on the host."""

    def write(self, step, draft, grads):
        if grads.metrics["loss"].item() > 0:
            step.write(draft, grads)


def test_what_decides_by_a_value_is_refused():
    """It would decide once, while the graph is made."""
    step = make(Deciding(), pr.Compile())
    with pytest.raises(CompileError, match="does not depend on the values of tensors"):
        step(step.init(), batch())


def test_chance_of_others_is_refused():
    """A graph would draw from numpy or Python just once."""
    import random

    step = make(pr.Compile(), loss=lambda model, batch: model(batch["x"]).mean() * random.random())
    with pytest.raises(ModelError, match="draw from torch's generators only"):
        step(step.init(), batch())


def test_optimizers_without_a_form_to_trace_keep_their_kernel():
    """With "grad"; a line search does not even start."""
    nadam = pr.optim.Torch(torch.optim.NAdam, lr=0.01)
    step = make(pr.Compile(), optimizer=nadam)
    with pytest.raises(CompileError, match=r'compile the gradients alone: Compile\("grad"\)'):
        step(step.init(), batch())
    with pytest.raises(ValueError, match="searches along a line"):
        make(pr.Compile(), optimizer=pr.optim.Torch(torch.optim.LBFGS))


def test_a_missing_compiler_is_said_in_one_line():
    """Where there is no g++."""
    cpp_compiler_search.cache_clear()
    step = make(pr.Compile())
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}),
        pytest.raises(CompileError, match=r"expected a C\+\+ compiler, .* found none; install g\+\+"),
    ):
        step(step.init(), batch())
    cpp_compiler_search.cache_clear()


def test_half_a_file_in_the_cache_is_no_obstacle(monkeypatch):
    """A process that was killed while it compiled leaves one: another cache is taken then."""
    real, caches = torch._inductor.compile, []

    def compile_(*arguments, **options):
        caches.append(torch._inductor.runtime.runtime_utils.cache_dir())
        if len(caches) == 1:
            raise InductorError(ImportError("x.so: file too short"), inspect.currentframe())
        return real(*arguments, **options)

    monkeypatch.setattr(torch._inductor, "compile", compile_)
    made = graph.Graph(lambda draft, given: ({"out": {"": draft["w"] + 1}}, None), {"w": torch.ones(2)}, [])

    assert [2.0, 2.0] == made([torch.ones(2)])[0]["out"][""].tolist()
    assert 2 == len(set(caches))


def test_another_dtype_of_the_state_takes_another_graph():
    """Kinds are compared before a graph runs."""
    tensors = [torch.ones(2), torch.ones(2)]
    made = graph.Graph(
        lambda draft, given: ({"out": {"": draft["w"] + given[0]}}, None), {"w": tensors[0]}, tensors[1:]
    )

    assert made.fits([torch.zeros(2), torch.zeros(2)])
    assert not made.fits([torch.zeros(2), torch.zeros(2).double()])
    assert not made.fits([torch.zeros(3), torch.zeros(2)])
    assert not made.fits([torch.zeros(4)[::2], torch.zeros(2)])


class Centred(nn.Module):
    """A module with a tensor in a plain attribute."""

    def __init__(self):
        super().__init__()
        self.fc, self.mean = nn.Linear(4, 1), torch.ones(4)

    def forward(self, x):
        return self.fc(x - self.mean)


def test_tensors_in_plain_attributes_are_constants():
    """They are looked at as always, and that is no part of the graph."""
    step = pr.TrainStep(Centred(), lambda model, x: model(x).square().mean(), pr.optim.SGD(lr=0.1))
    x = torch.randn(3, 4)
    expected, after = step(step.init(), x), pr.wrap(step, pr.Compile("grad"))(step.init(), x)

    assert torch.allclose(expected["params", "fc.weight"], after["params", "fc.weight"], atol=1e-6)


def test_blocks_around_the_forward_pass_are_refused():
    """A graph would keep those that it was traced in, and see no others."""

    @attrs.frozen
    class Within(pr.Wrapper):
        def read(self, step, draft, batch, how):
            return step.read(draft, batch, attrs.evolve(how, within=(torch.inference_mode,)))

    step = pr.TrainStep(nn.Linear(2, 1), lambda model, x: model(x).mean(), pr.optim.SGD(lr=0.1))
    step = pr.wrap(step, pr.Compile(), Within())
    with pytest.raises(CompileError, match="put the wrapper that makes it inside of Compile"):
        step(step.init(), torch.ones(4, 2))
