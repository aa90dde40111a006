"""Keys: the same path is the same chance, other paths have nothing in common, and nothing outside notices."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purerun.random import Key, bits, draws_elsewhere, keyed, keyed_everywhere, seed_everywhere, uniform

paths = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=3)), max_size=4).map(tuple)


def draws() -> tuple[float, float, float]:
    """Draw once from each global generator."""
    return float(torch.rand(())), float(np.random.rand()), random.random()


@given(st.integers(0, 2**63 - 1), paths, paths)
def test_keys_of_different_paths_differ(seed, first, second):
    """Two keys are equal when, and only when, their paths are."""
    same = (first == second) and list(map(type, first)) == list(map(type, second))

    assert same == (Key.of(seed, *first) == Key.of(seed, *second))


def test_paths_are_hashed_together_and_not_added():
    """Neighbouring seeds and epochs, numbers and their texts, and other cuts of one path are different keys."""
    keys = [Key.of(s, "order", e) for s in range(20) for e in range(20)]
    keys += [Key.of(0, 1, 23), Key.of(0, 12, 3), Key.of(0, "1", 23), Key.of(0, "1, 23"), Key.of(0, 123), Key.of(0)]

    assert len(keys) == len(set(keys))


def test_a_key_is_the_same_in_every_process():
    """Keys do not depend on Python's hash seed."""
    code = "from purerun.random import Key; print(Key.of(7, 'step', 3).value)"
    results = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }

    assert {f"{Key.of(7, 'step', 3).value}\n"} == results


def test_the_value_of_a_key_never_changes():
    """Runs of old versions stay reproducible: the hash is part of the format."""
    assert (5263075011782779848, 11425006106245048527) == (Key.of(0).value, Key.of(0, "step", 7).value)


def test_split_gives_independent_keys():
    """Parts of a split differ from each other, from the key, and from other ways down."""
    key = Key.of(0)
    parts = key.split(50)

    assert 52 == len({key, key.fold_in(0), *parts})


def test_neighbouring_keys_draw_unrelated_numbers():
    """Streams of neighbouring steps are not correlated."""
    rows = torch.stack([torch.randn(1000, generator=Key.of(0, "step", i).generator()) for i in range(30)])
    between = torch.corrcoef(rows) - torch.eye(30)

    assert float(between.abs().max()) < 0.15


@pytest.mark.parametrize("context", [keyed, keyed_everywhere])
def test_a_keyed_block_leaves_no_trace(context):
    """The global generators stand where they stood, also when the block raises."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with context(Key.of(1)):
        draws() if context is keyed_everywhere else torch.rand(3)
    with pytest.raises(ZeroDivisionError), context(Key.of(1)):
        torch.rand(3)
        1 / 0  # noqa: B018

    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_a_keyed_block_draws_the_same_wherever_the_generators_stood():
    """What is drawn inside is a function of the key."""
    with keyed_everywhere(Key.of(5)):
        expected = draws()
    draws()
    with keyed_everywhere(Key.of(5)):
        again = draws()
    with keyed(Key.of(5)):
        torch_only = float(torch.rand(()))

    assert expected == again
    assert expected[0] == torch_only


def test_keyed_blocks_nest():
    """An inner block does not disturb the outer one."""
    with keyed(Key.of(1)):
        expected = torch.rand(2)
    with keyed(Key.of(1)):
        first = torch.rand(1)
        with keyed(Key.of(2)):
            torch.rand(5)
        second = torch.rand(1)

    with keyed(Key.of(1)):
        plain = torch.cat([torch.rand(1), torch.rand(1)])
    assert torch.equal(plain, torch.cat([first, second]))
    assert 2 == len(expected)


def test_seeding_everywhere_reaches_all_three_generators():
    """Worker processes start all global generators at their key."""
    seed_everywhere(Key.of(3))
    first = draws()
    seed_everywhere(Key.of(3))

    assert first == draws()


@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True), st.integers(1, 5))
def test_the_bits_of_a_position_do_not_depend_on_the_others(seed, positions, count):
    """Cut, joined or reordered, each sample keeps its chance; more draws do not change the first."""
    key, where = Key.of(seed), torch.tensor(positions)
    whole = bits(key, where, count)

    assert whole.tolist() == [bits(key, where[i : i + 1], count + 1)[0, :count].tolist() for i in range(len(positions))]
    assert len(positions) * count == len({int(v) for v in whole.flatten()})


def test_uniform_numbers_are_uniform():
    """Their distribution is flat (Kolmogorov-Smirnov), and neighbours are not correlated."""
    numbers = uniform(Key.of(0, "sample"), torch.arange(20_000), 2)
    ordered = numbers[:, 0].sort().values
    gap = (ordered - (torch.arange(20_000) + 0.5) / 20_000).abs().max()
    pairs = torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0], numbers[:-1, 1]]))

    assert numbers.dtype == torch.float32
    assert 0 <= float(numbers.min())
    assert float(numbers.max()) < 1
    assert float(gap) < 1.63 / 20_000**0.5
    assert float((pairs - torch.eye(3)).abs().max()) < 0.03


def test_each_bit_is_fair():
    """Each of the 64 bits is set half of the time, and flips half of the time from position to position."""
    words = bits(Key.of(4), torch.arange(4000), 1).flatten()
    table = torch.stack([(words >> place) & 1 for place in range(64)]).double()
    flips = (table[:, 1:] - table[:, :-1]).abs()

    assert float((table.mean(1) - 0.5).abs().max()) < 0.04
    assert float((flips.mean(1) - 0.5).abs().max()) < 0.04


def test_generators_of_a_key_start_at_it():
    """The numpy and the torch generator of a key are made anew each time."""
    key = Key.of(2, "x")

    assert key.numpy().random(3).tolist() == key.numpy().random(3).tolist()
    assert all(torch.equal(a, b) for a, b in pairwise(torch.rand(3, generator=key.generator()) for _ in range(3)))


def _helper():
    return np.random.beta(0.4, 0.4)


def _imports_inside():
    import numpy as np

    return np.random.rand()


class _Callable:
    def __call__(self):
        return random.random()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: 1 + np.random.rand(), True),
        (lambda: 1 + random.random(), True),
        (lambda: 1 + _helper(), True),
        (_imports_inside, True),
        (_Callable(), True),
        (lambda: [_helper() for _ in range(2)], True),
        (lambda: torch.rand(2), False),
        (len, False),
    ],
    ids=[
        "numpy",
        "python",
        "through a helper",
        "imported inside",
        "an object",
        "in a comprehension",
        "torch",
        "builtin",
    ],
)
def test_chance_from_elsewhere_is_seen_in_the_code(function, expected):
    """So that a loss that draws from numpy now and then is keyed at every iteration, not from the first draw on."""
    assert expected == draws_elsewhere(function)
