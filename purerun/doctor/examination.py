"""The examination of a recipe: all its parts, and what was found."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import attrs

from purerun.doctor.course import Course
from purerun.doctor.finding import Examined, Finding
from purerun.doctor.modes import modes_kept
from purerun.recipe import Recipe
from purerun.recipe.run import threads

ITERS, WORKERS = 6, 2


def examine(recipe: Recipe, *, iters: int = ITERS, workers: int = WORKERS) -> tuple[Finding, ...]:
    """Run the laws on a recipe, and find the lines that break them.

    Args:
        recipe: the run; its parts are called many times, on few samples.
        iters: iterations of the short run in which everything comes together.
        workers: worker processes to compare none with; 0 for no such comparison.

    Returns:
        Faults and notes, in the order of the parts.

    Raises:
        RecipeError: the recipe makes no model, or no step.

    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=2,
    ...     device="cpu",
    ... )
    >>> examine(recipe, workers=0)
    ()
    """
    return tuple(finding for each in examination(recipe, iters=iters, workers=workers) for finding in each.findings)


def examination(
    recipe: Recipe,
    *,
    iters: int = ITERS,
    workers: int = WORKERS,
    tell: Callable[[Examined], None] = lambda each: None,
) -> tuple[Examined, ...]:
    """Examine a recipe part by part.

    A line that has been named for breaking a law is not named for that again.

    Args:
        recipe: as in `examine`.
        iters: as in `examine`.
        workers: as in `examine`.
        tell: told of each part as soon as it has been examined.

    Raises:
        RecipeError: the recipe makes no model, or no step.
    """
    told: set[tuple[str, str]] = set()
    every: list[Examined] = []
    with warnings.catch_warnings(), threads(recipe.threads), modes_kept():
        warnings.simplefilter("ignore")  # the doctor tells them itself, once
        for each in Course(recipe.here(), iters=iters, workers=workers).parts():
            every.append(_parted(each, told))
            tell(every[-1])
    return tuple(every)


def _parted(each: Examined, told: set[tuple[str, str]]) -> Examined:
    """Part what is new from what has been told of a line."""
    new, known = [], []
    for finding in each.findings:
        place = finding.law, finding.where
        (known if finding.where and place in told else new).append(finding)
        told.add(place)
    return attrs.evolve(each, findings=tuple(new), known=tuple(known))
