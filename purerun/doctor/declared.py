"""Where the attributes of a module are declared: the line of its class that assigns them."""

from __future__ import annotations

import ast
import inspect
import textwrap

from torch import nn

from purerun.doctor.lines import Line, is_own


def declared(module: nn.Module, name: str) -> Line | None:
    """Find the line of the user's own that makes a parameter, or the layer that holds it.

    Args:
        module: the whole model.
        name: the parameter's, such as "head.weight".
    """
    found: Line | None = None
    inner: nn.Module | None = module
    for part in name.split("."):
        if inner is None:
            break
        # The innermost class of the user's own knows best.
        found = _assigned(type(inner), part) or found
        inner = inner._modules.get(part)
    return found


def _assigned(kind: type, name: str) -> Line | None:
    for owner in kind.__mro__:
        file = _file(owner)
        if file is None:
            continue
        lines, start = inspect.getsourcelines(owner)
        for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in _targets(node):
                return Line(file, start + node.lineno - 1)
    return None


def _file(kind: type) -> str | None:
    try:
        file = inspect.getsourcefile(kind)
    except (OSError, TypeError):
        return None
    return file if file is not None and is_own(file) else None


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """List the attributes of `self` that a statement assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    parts = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Attribute)]
    return {part.attr for part in parts if isinstance(part.value, ast.Name) and part.value.id == "self"}
