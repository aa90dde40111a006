"""Following a call: which line is blamed for what is seen after it."""

from __future__ import annotations

import sys

from purerun.doctor.lines import Line, beginning, is_own, is_theirs
from purerun.doctor.trace import follow, watch
from tests.doctor.marks import HERE

LOG: list[int] = []


def outer(x):
    y = x + 1
    z = inner(y)
    LOG.append(z)  # first
    LOG.append(z)
    return z


def inner(y):
    LOG.append(y)  # inner
    return 2 * y


def counting(stop):
    for number in range(stop):
        yield number
        LOG.append(number)  # generator


def failing():
    LOG.append(1)  # before it fails
    raise OSError


def lines(mark):
    """Find the line with a comment."""
    texts = (HERE / "test_trace.py").read_text().splitlines()
    return next(number for number, text in enumerate(texts, 1) if text.endswith(f"# {mark}"))


def changes(act, name="log"):
    """Find the line that first changes the log."""
    LOG.clear()
    return watch(act, lambda: {name: str(LOG)}).get(name)


def test_the_innermost_line_is_blamed():
    """Not the one that called its function."""
    assert changes(lambda: outer(1)) == Line(__file__, lines("inner"))


def test_a_generator_is_followed_from_stop_to_stop():
    """It has lines of its own between two `next`."""
    assert changes(lambda: list(counting(2))).number == lines("generator")


def test_what_is_not_followed_is_not_blamed():
    """A change by somebody else's code, between two lines, has no line."""
    assert changes(lambda: LOG.append(1)).number is not None  # our own lambda
    assert changes(LOG.__iadd__.__self__.clear) is None


def test_long_code_is_let_go():
    """The first thousands of moments are seen, and the result is that of the whole."""
    seen = []
    total = follow(lambda: sum(counting(30_000)), seen.append)

    assert sum(range(30_000)) == total
    assert 10_000 < len(seen) < 60_000


def test_errors_pass_through():
    """And the tracing ends with them."""
    LOG.clear()
    before, found = sys.gettrace(), {}
    try:
        found = watch(failing, lambda: {"log": str(LOG)})
    except OSError:
        found = {"raised": True}

    assert {"raised": True} == found
    assert before is sys.gettrace()


def test_a_tracer_that_was_there_comes_back():
    """A debugger's, or that of a measurement of coverage."""
    seen = []

    def tracer(frame, kind, value):
        seen.append(kind)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        follow(lambda: outer(1), lambda moment: None)
        kept = sys.gettrace()
    finally:
        sys.settrace(before)

    assert tracer is kept


def test_results_pass_through():
    """The call is the same, followed or not."""
    assert outer(3) == follow(lambda: outer(3), lambda moment: None)


def test_whose_file_it_is():
    """Ours and the libraries' are not the user's; what is installed is somebody's."""
    import attrs
    import torch

    import purerun

    assert (True, True) == (is_own(__file__), is_theirs(__file__))
    assert (False, True) == (is_own(attrs.__file__), is_theirs(attrs.__file__))
    assert [(False, False)] * 3 == [(is_own(f), is_theirs(f)) for f in (torch.__file__, purerun.__file__, "<string>")]


def test_where_things_begin():
    """Below their decorators; nobody can tell of what is written in C."""

    def wrapped(function):
        return function

    @wrapped
    def decorated():
        """Do nothing."""

    assert beginning(decorated).source == "def decorated():"
    assert str(beginning(decorated)).startswith("in ")
    assert beginning(len) is None
