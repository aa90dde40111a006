"""Marks in files with planted faults: `# FAULT: name` at the end of the guilty line."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def marked(name):
    """Find the marked lines of a file: mark -> (file, line number)."""
    lines = (HERE / name).read_text().splitlines()
    found = ((re.search(r"# (?:FAULT|NOTE): (.+)$", text), number) for number, text in enumerate(lines, 1))
    return {match[1]: (name, number) for match, number in found if match}


def pointed(finding):
    """Say where a finding points: (file, line number)."""
    file, _, number = finding.where.removeprefix("in ").rpartition(":")
    return Path(file).name, int(number)
