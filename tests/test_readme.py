"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """The code blocks, one after the other, are one script that ends without an error."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)

    assert blocks
    exec(compile("\n".join(blocks), README, "exec"), {"__name__": "__main__"})  # noqa: S102 - our own text
