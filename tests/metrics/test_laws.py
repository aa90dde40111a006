"""Every metric of the tables keeps every law."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purerun.testing.metrics import check_order, check_split, laws
from tests.metrics.tables import ROWS, Row

CASES = [
    pytest.param(row, law, id=f"{row.name}-{law.__name__}")
    for row in ROWS
    for law in laws(ordered=row.ordered, grows=row.grows)
]
EACH_ROW = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)

# torchmetrics warns of classes that a few samples lack.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(("row", "law"), CASES)
def test_laws(row: Row, law):
    """Each law holds for each metric."""
    law(row.metric, row.batches(), row.tolerance)


@EACH_ROW
@settings(max_examples=4)
@given(data=st.data())
def test_split_anywhere(row: Row, data: st.DataObject):
    """Batches of any sizes, cut into any stretches, merge into the whole."""
    sizes = data.draw(st.lists(st.integers(2, 9), min_size=3, max_size=6))
    cuts = data.draw(st.lists(st.integers(0, len(sizes)), max_size=4))

    check_split(row.metric, row.batches(sizes, data.draw(st.integers(0, 99))), row.tolerance, cuts)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.ordered], ids=lambda row: row.name)
@settings(max_examples=4)
@given(data=st.data())
def test_any_process(row: Row, data: st.DataObject):
    """It does not matter which process saw which batch, nor that some saw none."""
    sizes = data.draw(st.lists(st.integers(2, 9), min_size=3, max_size=6))
    owners = data.draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))

    check_order(row.metric, row.batches(sizes, data.draw(st.integers(0, 99))), row.tolerance, owners)
