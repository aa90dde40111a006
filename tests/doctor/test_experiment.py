"""Experiments: a cause is what makes the result the same again when it is put back."""

from __future__ import annotations

import copy
import functools
import itertools
import random

import numpy as np
import pytest
import torch

from purerun.doctor.experiment import experiment
from purerun.doctor.looks import inside, outside, same_object
from purerun.doctor.memory import remembered


class Counter:
    """Counts in an attribute, and keeps a cache that does not matter."""

    shared: list[int] = []  # noqa: RUF012 - something to remember in

    def __init__(self):
        self.count, self.cache, self.tensor, self.array = 0, {}, torch.zeros(2), np.zeros(2)

    def attribute(self):
        self.cache["x"] = 1
        self.count += 1
        return self.count

    def of_class(self):
        self.shared.append(1)
        return len(self.shared)

    def in_tensor(self):
        self.tensor += 1
        return self.tensor.clone()

    def in_array(self):
        self.array[0] += 1
        return self.array.copy()

    def new(self):
        self.later = getattr(self, "later", 0) + 1
        return self.later

    def idle(self):
        self.count += 1
        return 3


class Slotted:
    """Keeps its count in a slot."""

    __slots__ = ("count",)

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.count


def by_default(seen=[]):  # noqa: B006 - this is what is looked for
    seen.append(1)
    return len(seen)


def by_attribute():
    by_attribute.calls = getattr(by_attribute, "calls", 0) + 1
    return by_attribute.calls


def of_two(counter, generator):
    counter.count += 1
    return counter.count + generator.random()


COUNTER = Counter()

MEMORIES = {
    "Counter.count": COUNTER.attribute,
    "Counter.shared": COUNTER.of_class,
    "Counter.tensor": COUNTER.in_tensor,
    "Counter.array": COUNTER.in_array,
    "Counter.later": COUNTER.new,
    "Slotted.count": Slotted(),
    "a default of by_default": by_default,
    "by_attribute.calls": by_attribute,
}


@pytest.mark.parametrize(("name", "act"), MEMORIES.items(), ids=MEMORIES)
def test_a_memory_is_found_and_named(name, act):
    """Wherever Python can remember; a cache beside it is not accused."""
    evidence = experiment(act, [act])

    assert evidence.differs
    assert [("memory", name)] == [(cause.kind, cause.name) for cause in evidence.causes]


@pytest.mark.parametrize(
    "generator",
    [np.random.default_rng(0), np.random.RandomState(0), random.Random(0), torch.Generator()],
    ids=["numpy", "numpy, legacy", "Python", "torch"],
)
def test_a_generator_is_found_and_named(generator):
    """Each kind can be read and put back."""

    def draw():
        if isinstance(generator, torch.Generator):
            return torch.rand(2, generator=generator)
        return generator.random()

    evidence = experiment(draw, [draw])

    assert [("generator", "generator", True)] == [(each.kind, each.name, each.always) for each in evidence.causes]
    assert inspected(draw, evidence.causes[0].line)


def inspected(function, line):
    """Say whether a line lies in a function."""
    first = function.__code__.co_firstlineno
    return first <= line.number < first + 5


def test_a_generator_in_a_dict_is_named_by_its_key():
    """The dict is the same; what it holds has moved."""
    generators = {"noise": np.random.default_rng(0)}

    def act():
        return generators["noise"].normal()

    assert ["generators['noise']"] == [cause.name for cause in experiment(act, [act]).causes]


def test_two_causes_are_both_found():
    """Neither alone explains the difference."""
    act = functools.partial(of_two, Counter(), random.Random(0))

    assert {"memory", "generator"} == {cause.kind for cause in experiment(act, [act]).causes}


def test_what_is_new_at_each_call():
    """Nothing that could be put back: the line after which two calls part is named."""

    def act():
        chance = random.SystemRandom()
        number = chance.random()  # the calls part here
        return 2 * number

    evidence = experiment(act, [act])

    assert ["fresh"] == [cause.kind for cause in evidence.causes]
    assert evidence.causes[0].line.source.endswith("# the calls part here")


def test_a_memory_without_effect_is_idle():
    """It is seen, and not called a cause."""
    counter = Counter()
    evidence = experiment(counter.idle, [counter])

    assert (False, ()) == (evidence.differs, evidence.causes)
    assert [("Counter.count", True)] == [(cause.name, cause.always) for cause in evidence.idle]


def test_a_cache_is_told_from_a_memory():
    """Only the first call changes it."""

    class Lazy:
        squares = None

        def __call__(self):
            if self.squares is None:
                self.squares = [1, 4, 9]
            return self.squares[1]

    lazy = Lazy()

    assert [("Lazy.squares", False)] == [(cause.name, cause.always) for cause in experiment(lazy, [lazy]).idle]


def test_a_pure_function_has_no_cause():
    """Nor is anything idle."""
    evidence = experiment(lambda: torch.ones(3).sum(), [])

    assert (False, (), ()) == (evidence.differs, evidence.causes, evidence.idle)


@pytest.mark.parametrize(
    "value",
    [[1, [2]], {"a": {"b": [1]}}, {1, 2}, torch.arange(3.0), np.arange(3), random.Random(1), np.random.default_rng(1)],
    ids=["list", "dict", "set", "tensor", "array", "Python", "numpy"],
)
def test_contents_are_put_back_in_place(value):
    """The object stays the very same, whoever else holds it."""

    def act():
        return value

    memory, look = remembered([act]), same_object(value)
    spoil(value)
    (spot,) = memory.changed()
    memory.put_back([spot])

    assert look == same_object(value)
    assert [] == memory.changed()


def spoil(value):
    """Change a value in place, as deep as it goes."""
    if isinstance(value, list):
        spoil(value[1]) if len(value) > 1 and isinstance(value[1], list) else value.append(9)
    elif isinstance(value, dict):
        value["a"]["b"].append(9)
    elif isinstance(value, set):
        value.add(9)
    elif isinstance(value, torch.Tensor | np.ndarray):
        value[1] = 9
    else:
        value.random()


PAIRS = {
    "numbers": (1, 2),
    "nested": ({"a": [1, (2, 3)]}, {"a": [1, (2, 4)]}),
    "tensors": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "large tensors": (torch.zeros(600_000), torch.zeros(600_000) + 1e-3),
    "arrays of objects": (np.array(["a", None]), np.array(["b", None])),
    "generators": (random.Random(0), random.Random(1)),
    "shapes": (torch.zeros(1, 2), torch.zeros(2, 1)),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("look", [inside, outside, same_object])
def test_different_contents_look_different(one, other, look):
    """And the same ones the same."""
    assert look(one) != look(other)
    assert look(one) == look(one)


@pytest.mark.parametrize("one", [each for each, _ in PAIRS.values()], ids=PAIRS)
@pytest.mark.parametrize("look", [inside, outside])
def test_equal_contents_look_equal(one, look):
    """Also in another object, where the very object does not matter."""
    assert look(one) == look(copy.deepcopy(one))


def test_objects_are_looked_at_as_asked():
    """By type, by identity, or by what they hold."""
    one, other = itertools.count(), itertools.count()

    assert outside(one) == outside(other)
    assert same_object(one) != same_object(other)
    assert inside(Counter()) == inside(Counter())
