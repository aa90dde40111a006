"""Conditions: functions of the counters, the same after any resume."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purerun.hooks import All, Any, At, Every, Last, Not, every
from purerun.testing import counted


def epochs(when, count=20):
    """List the epochs after which a condition holds."""
    return [number for number in range(1, count + 1) if when(counted(epoch=number, iter=5 * number))]


def iters(when, count=20):
    """List the iterations after which a condition holds."""
    return [number for number in range(1, count + 1) if when(counted(epoch=1, cursor=3, iter=number))]


@given(st.integers(1, 7), st.integers(1, 12))
def test_every_n_from_a_first_one(count, begin):
    """Multiples of n that are no earlier than the first."""
    expected = [number for number in range(begin, 21) if number % count == 0]

    assert expected == epochs(Every(count, begin=begin)) == iters(Every(count, "iter", begin=begin))


def test_epochs_count_at_their_ends_only():
    """In the middle of an epoch, and before the first, nothing holds."""
    assert not Every(1)(counted(epoch=3, cursor=8, iter=7))
    assert not Every(1)(counted())
    assert Every(1)(counted(epoch=1, iter=4))


@pytest.mark.parametrize(
    ("interval", "changes", "expected"),
    [
        (5, [(11, 2)], [5, 10, 12, 14, 16, 18, 20]),
        (1, [(4, 3), (9, 5)], [1, 2, 3, 6, 10, 15, 20]),
        (10, [(16, 1)], [10, 15, 16, 17, 18, 19, 20]),
        (4, [], [4, 8, 12, 16, 20]),
    ],
    ids=["MMEngine's example", "two", "late", "none"],
)
def test_intervals_may_change(interval, changes, expected):
    """As MMEngine's `dynamic_intervals`: the milestone's interval rules from the check before it on."""
    when = Every(interval, changes=changes)

    assert expected == epochs(when)
    assert when == Every(interval, changes=list(reversed(changes)))


def test_given_ones():
    """A list of epochs or iterations."""
    assert [2, 5] == epochs(At([5, 2, 30]))
    assert [2, 5] == iters(At((2, 5), "iter"))


def test_the_last_one_is_the_loop_s():
    """The loop says where it ends."""
    assert [] == epochs(Last())
    assert [7] == epochs(Last().within(7, None))
    assert [7] == iters(Last().within(None, 7), 7)


@given(st.integers(1, 5), st.integers(1, 5))
def test_conditions_are_joined(a, b):
    """By or, and, not."""
    first, second = Every(a), Every(b)
    numbers = range(1, 21)

    assert [n for n in numbers if n % a == 0 or n % b == 0] == epochs(first | second) == epochs(Any((first, second)))
    assert [n for n in numbers if n % a == 0 and n % b == 0] == epochs(first & second) == epochs(All((first, second)))
    assert [n for n in numbers if n % a] == epochs(~first) == epochs(Not(first))


def test_joined_conditions_learn_where_the_loop_ends():
    """However deep the last one stands."""
    when = (Every(10) | Last()) & ~At([20])

    assert [10, 17] == epochs(when.within(17, None), 17)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("1 epoch", Every(1)),
        ("3 epochs", Every(3)),
        ("500 iters", Every(500, "iter")),
        ("1 iter", Every(1, "iter")),
        (50, Every(50, "iter")),
        ("last", Last()),
        (At([1]), At([1])),
    ],
    ids=str,
)
def test_texts_are_read(spec, expected):
    """Numbers are iterations."""
    assert expected == every(spec)


@pytest.mark.parametrize(
    "spec", ["", "epoch", "0 epochs", "-1 iters", "2 days", "1.5 epochs", "every epoch", None, True, 0], ids=repr
)
def test_other_texts_are_refused(spec):
    """With an example of what is meant."""
    with pytest.raises(ValueError, match=r"1 epoch|at least 1"):
        every(spec)


@pytest.mark.parametrize(
    "make",
    [lambda: Every(0), lambda: Every(-1), lambda: Every(1, "day"), lambda: At([1], "day")],
    ids=["zero", "negative", "unit", "unit of At"],
)
def test_impossible_conditions_are_refused(make):
    """When they are made."""
    with pytest.raises(ValueError, match=r"`count` should|`unit` should"):
        make()
