"""Lending tensors to another thread: the lender writes as it likes, and the borrower copies what was lent."""

from __future__ import annotations

import threading

import pytest
import torch

from purerun.loan import Loan, collect
from purerun.state import lazy_clone


@pytest.mark.parametrize("rounds", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_thread_copies_while_its_lender_writes(rounds):
    """Each copy is what was lent, each tensor is what was written, however the two meet."""
    tensors = [torch.zeros(64) for _ in range(20)]
    for number in range(rounds):
        loan = Loan(map(lazy_clone, tensors))
        copies: list[torch.Tensor] = []
        borrower = threading.Thread(target=lambda copies=copies, loan=loan: copies.extend(loan.copies()))
        borrower.start()
        for tensor in tensors:
            collect()
            tensor.add_(1)
        borrower.join()

        assert [float(number)] * 20 == [float(copy.sum()) / 64 for copy in copies]
    collect()

    assert all(torch.equal(tensor, torch.full((64,), float(rounds))) for tensor in tensors)


def test_the_lender_alone_lets_go():
    """What was read is kept until the thread that lent it asks; another one's asking is nothing to it."""
    loan = Loan([torch.zeros(1)])
    assert 1 == len(list(loan.copies()))
    other = threading.Thread(target=collect)
    other.start()
    other.join()
    before = loan.over
    collect()

    assert (False, True) == (before, loan.over)


def test_a_borrower_that_fails_has_read_all():
    """So that nothing is kept for ever."""
    loan = Loan([torch.zeros(1), torch.zeros(1)])
    copies = loan.copies()
    next(copies)
    copies.close()
    collect()

    assert loan.over
