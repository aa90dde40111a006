"""What cannot be run for all members at once is refused in one line that says what."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from purerun.mapping import SweepError, mapped


def branch(x):
    """Decide by a value."""
    return x if x.sum() > 0 else -x


def written(x):
    """Write a member's values into what all share."""
    shared = torch.zeros(2)
    shared[0] = x.sum()
    return shared


REFUSED = {
    "item": (lambda x: x * x.sum().item(), "code that reads a tensor's value"),
    "branch": (branch, "code that"),
    "written": (written, "a write of members' values into a tensor that all share"),
    "unmapped": (lambda x: F.rrelu(x, training=True), "cannot be mapped: aten::rrelu"),
    "lists": (lambda x: torch._foreach_mul([x], 2.0)[0], "cannot be mapped: aten::_foreach_mul"),
}


@pytest.mark.parametrize(("function", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_mapped_is_refused(function, said):
    """The operation is named, and what to do."""
    with pytest.raises(SweepError, match=said) as caught:
        mapped(function, torch.ones(3, 2))

    assert "\n" not in str(caught.value)


def test_other_errors_stay_what_they_are():
    """A wrong shape is no matter of mapping."""
    with pytest.raises(RuntimeError, match="size of tensor") as caught:
        mapped(lambda x: x + torch.ones(5), torch.ones(3, 2))

    assert not isinstance(caught.value, SweepError)


def test_what_is_the_same_for_all_gets_memory_of_its_own():
    """A constant is written down for each member, so that one can be changed alone."""
    made = mapped(lambda x: {"x": x, "constant": torch.zeros(2), "rest": [torch.ones(())]}, torch.ones(3, 1))
    made["constant"][0] += 1

    assert [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]] == made["constant"].tolist()
    assert [1.0, 1.0, 1.0] == made["rest"][0].tolist()
