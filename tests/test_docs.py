"""The Python of the docs runs as it stands, and what it asserts is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {page.stem: page for page in sorted(DOCS.glob("*.md")) if BLOCK.search(page.read_text())}


def script(page):
    """Put the code blocks of a page together, each on the lines on which it stands there."""
    text = page.read_text()
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        start, code = text.count("\n", 0, block.start(1)), block[1].splitlines()
        lines[start : start + len(code)] = code
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """The code blocks, one after the other, are one script that ends without an error."""
    monkeypatch.chdir(tmp_path)

    exec(compile(script(page), page, "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text


def test_there_are_pages_with_python():
    """Or the above would test nothing."""
    assert {"algebra", "derivatives", "parallel", "sweeps", "wrappers"} <= set(PAGES)
