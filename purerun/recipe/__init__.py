"""Recipes: a whole run as one frozen value, its file, and changes of it asked for as texts."""

from purerun.recipe.error import RecipeError
from purerun.recipe.file import load
from purerun.recipe.module import Module
from purerun.recipe.overrides import override
from purerun.recipe.recipe import Recipe
from purerun.recipe.overrides import override, split
from purerun.recipe.resolved import Difference, differences, resolved, text

__all__ = ["Difference", "Module", "Recipe", "RecipeError", "differences", "load", "override", "resolved", "text"]
