"""Recipes: a whole run as one frozen value, its file, and changes of it asked for as texts."""

from purerun.recipe.alternation import Alternation
from purerun.recipe.error import RecipeError
from purerun.recipe.file import load
from purerun.recipe.module import Module
from purerun.recipe.overrides import override, split
from purerun.recipe.part import Part
from purerun.recipe.place import holds_run
from purerun.recipe.recipe import Recipe
from purerun.recipe.resolved import Difference, differences, resolved, text
from purerun.recipe.run import Outcome, test, train
from purerun.recipe.weights import Weights

__all__ = [
    "Alternation",
    "Difference",
    "Module",
    "Outcome",
    "Part",
    "Recipe",
    "RecipeError",
    "Weights",
    "differences",
    "holds_run",
    "load",
    "override",
    "resolved",
    "split",
    "test",
    "text",
    "train",
]
