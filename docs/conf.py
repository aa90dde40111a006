"""How the pages are built: Markdown for prose, docstrings for the reference."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent

project = "purerun"
author = "the purerun authors"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.napoleon", "sphinx.ext.autodoc", "sphinx.ext.apidoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 2  # pages link to sections of each other

# The reference needs no list of its own: a new file of the package is a new page.
apidoc_modules = [{"path": "../purerun", "destination": "reference", "separate_modules": True, "module_first": True}]
# What a room passes on is described once, in the file where it is written.
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True  # fields are listed under their class, not indexed a second time
default_role = "code"  # `name` in a docstring is code, as it is in Markdown

# A reference inside purerun has to lead somewhere.  Those of other packages lead nowhere here: their indexes would have
# to be downloaded, and the pages are built without a network.
nitpick_ignore_regex = [(r"py:.*", r"(?!purerun\b).*")]
# Type variables have no page.
sources = "".join(path.read_text() for path in (ROOT / "purerun").rglob("*.py"))
variables = "|".join(sorted(set(re.findall(r"^(\w+) = TypeVar\(", sources, re.MULTILINE))))
nitpick_ignore_regex += [(r"py:.*", rf"purerun\..*\.({variables})")]
# `type` in an annotation is the builtin, though some fields have that name too.
suppress_warnings = ["ref.python"]

html_theme = "pydata_sphinx_theme"
html_title = "purerun"
html_show_sourcelink = False
