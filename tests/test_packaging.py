"""The package as a stranger meets it: what it needs, what is pinned, what the README tells them to type."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = dict(
    re.fullmatch(r"(\S+)==(\S+)", line).groups()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)
PINNED = {canonicalize_name(name): version for name, version in PINS.items()}
NEEDED = [
    Requirement(text) for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
]


@pytest.mark.parametrize("needed", [each for each in NEEDED if each.name != "purerun"], ids=str)
def test_every_dependency_is_pinned_inside_its_range(needed):
    """What pyproject.toml asks for, constraints.txt pins at a version that it allows."""
    version = PINNED.get(canonicalize_name(needed.name))

    assert version is not None
    assert needed.specifier.contains(version)


def test_every_dependency_has_a_lower_bound_and_no_upper_one():
    """The ranges are open: a pin belongs to constraints.txt."""
    loose = [str(each) for each in NEEDED if each.name != "purerun" and [s.operator for s in each.specifier] != [">="]]

    assert [] == loose


@pytest.mark.parametrize("name", ["run", "test"])
def test_the_readme_has_one_line_for_each_command(name):
    """.ci/run takes the two commands from the README: each is a single line that makes its own environment."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)

    assert 1 == len(commands)
    assert "\n" not in commands[0]
    assert commands[0].startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt ")


def test_the_package_says_that_it_is_typed():
    """Type checkers read the annotations of a package only where it carries the marker."""
    assert (ROOT / "purerun" / "py.typed").is_file()
