"""Recipe files: Python files that read from top to bottom and end with `recipe = pr.Recipe(...)`."""

from __future__ import annotations

import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from purerun.recipe.error import RecipeError, said
from purerun.recipe.recipe import Recipe


def load(path: str | Path) -> Recipe:
    """Run a recipe file and take its `recipe`.

    The file is imported as the module `recipe_<stem>`, whatever its folder and whoever runs it,
    so that the names of its functions and classes are the same in every process.  As for a script, its
    folder is put on `sys.path`, so that it may import what lies beside it.

    Args:
        path: the Python file.

    Raises:
        RecipeError: there is no such file, it fails, or it has no `recipe`; with file and line.

    >>> load("nowhere.py")
    Traceback (most recent call last):
    ...
    purerun.recipe.error.RecipeError: nowhere.py: there is no such file; give the path of a recipe, a Python file
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such file; give the path of a recipe, a Python file")
    if path.suffix != ".py":
        raise RecipeError(f"{path}: expected a Python file (.py) with `recipe = pr.Recipe(...)`")
    found = vars(_imported(path)).get("recipe")
    if not isinstance(found, Recipe):
        got = "no such name" if found is None else type(found).__name__
        raise RecipeError(f"{path}: expected the file to say `recipe = pr.Recipe(...)`, got {got}")
    return found


class _Fresh(SourceFileLoader):
    """Compiles the file as it is now: a cache tells versions apart by the second only."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _imported(path: Path) -> ModuleType:
    name = f"recipe_{path.stem}"
    spec = spec_from_file_location(name, path, loader=_Fresh(name, str(path)))
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path}: expected a Python file")
    module = module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    # Whatever a recipe raises is about the recipe; a file that exits is no recipe either.
    except (Exception, SystemExit) as error:
        sys.modules.pop(name)
        raise RecipeError(f"{_where(path, error)}: {_what(error)}") from error
    return module


def _where(path: Path, error: BaseException) -> str:
    """Find the line of the recipe that an error came from."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _what(error: BaseException) -> str:
    told = " ".join((error.msg if isinstance(error, SyntaxError) else said(error)).split())
    # Our own messages say everything; those of others need the name of their class.
    return told if isinstance(error, RecipeError) else f"{type(error).__name__}: {told}"
