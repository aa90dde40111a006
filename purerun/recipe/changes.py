"""What a changed recipe means for a run that goes on: whether it must be asked for, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from purerun.recipe.error import RecipeError
from purerun.recipe.overrides import override
from purerun.recipe.part import Part
from purerun.recipe.recipe import Recipe
from purerun.recipe.resolved import Difference
from purerun.schedule import Plan
from purerun.state import State

# How batches are made, and what is kept of the run: no bit of a state or of the log depends on these.
_FREE = (
    *(f"{loader}.{name}" for loader in ("train", "val", "test") for name in ("workers", "prefetch", "persistent")),
    *(f"{loader}.pin_memory" for loader in ("train", "val", "test")),
    *(f"{name}{below}" for name in ("checkpoint", "best", "test") for below in ("", ".*")),
    "keep",
    "publish",
    "on_save_error",
)


def is_free(change: Difference) -> bool:
    """Say whether a change changes no bit of the states to come, so that nobody need ask for it.

    >>> is_free(Difference("train.workers", 0, 2)), is_free(Difference("train.batch_size", 64, 32))
    (True, False)
    """
    return any(fnmatchcase(change.path, pattern) for pattern in _FREE)


def consequences(changes: Sequence[Difference], recipe: Recipe, state: State) -> tuple[str, ...]:
    r"""Say what was changed in the recipe of a run that goes on, and what follows from it: a line each.

    Args:
        changes: what was changed.
        recipe: as it is now.
        state: where the run stands.

    >>> from purerun.testing import counted
    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=3,
    ... )
    >>> print(*consequences([Difference("epochs", 2, 3)], recipe, counted(epoch=2, iter=4)), sep="\\n")
    epochs: 2 -> 3: the run ends later or sooner; schedules keep their own lengths
    """
    going = _Going(changes, recipe, state)
    # Of a run that is over nothing is computed and nothing written down, whatever was changed.
    told = [
        (change, _OVER if recipe.ended(state) and not is_free(change) else _told(change, going)) for change in changes
    ]
    first = {text: change.path for change, text in reversed(told)}
    # What follows from several changes alike is said once.
    return tuple(f"{change}: {text}" if first[text] == change.path else str(change) for change, text in told)


class _Going(NamedTuple):
    """A run that goes on with a changed recipe; each method says what follows from one kind of change."""

    changes: Sequence[Difference]
    recipe: Recipe
    state: State

    def longer(self) -> str:
        wrapped = any(part.wrappers for part in self.recipe.parts.values())
        closed = "; a window that was part full at the old end has been applied there" if wrapped else ""
        return f"the run ends later or sooner; schedules keep their own lengths{closed}"

    def batches(self) -> str:
        try:
            length = f", an epoch has {len(self.recipe.train)} iterations"  # type: ignore[arg-type]
        except (TypeError, ValueError):
            length = ""
        return (
            f"epoch {int(self.state['epoch'])} goes on at sample {int(self.state['cursor'])}, none lost and none "
            f"repeated{length}; what counts iterations (schedules, log, checkpoints) is not rescaled"
        )

    def data(self) -> str:
        if not int(self.state["cursor"]):
            return "other data, or in another order, from the next epoch on"
        return (
            f"the rest of epoch {int(self.state['epoch'])} is read from other data or in another order: "
            "some samples may come twice, others not at all"
        )

    def chance(self) -> str:
        return f"order, augmentation and dropout are others from here on; {self.data()}"

    def rates(self) -> str:
        now = _rates(self.recipe, self.state)
        paths = [each for each in self.changes if own_path(each.path).startswith(("schedule", "optimizer"))]
        try:
            before = _rates(override(self.recipe, [f"{each.path}={each.old}" for each in paths]), self.state)
        except RecipeError:
            before = ""  # the old one cannot be made by settings: another class, say
        if not now:
            return _FROM_HERE
        was = f", and would have been {before}" if before else ""
        return f"the learning rate of the next iteration is {now}{was}"

    def lines(self) -> str:
        return (
            f"the lines of the log lie at other iterations from {int(self.state['iter'])} on; the states do not change"
        )

    def beginning(self) -> str:
        return "not in force here: rules are for the first weights of a run that begins"

    def slots(self) -> str:
        return "slots that are new start empty here; those that both have stay as they are"

    def judging(self) -> str:
        return "scores are made otherwise or at other times; the weights stay the same unless a hook reads scores"


_OVER = "not in force, for the run is over there: nothing more is computed or written down"
_FROM_HERE = "in force from here on; what was computed before stays as it is"

_FOLLOWS: dict[str, Callable[[_Going], str]] = {
    "epochs": _Going.longer,
    "iters": _Going.longer,
    "train.batch_size": _Going.batches,
    "train.drop_last": _Going.batches,
    "train.*": _Going.data,
    "seed": _Going.chance,
    "init*": _Going.beginning,
    "optimizer.class": _Going.slots,
    "optimizer*": _Going.rates,
    "schedule*": _Going.rates,
    "wrappers*.class": _Going.slots,
    "hooks*.class": _Going.slots,
    "val*": _Going.judging,
    "metrics*": _Going.judging,
    "forward*": _Going.judging,
    "weights": _Going.judging,
    "log*": _Going.lines,
}


def _told(change: Difference, going: _Going) -> str:
    if is_free(change):
        return "no bit of the run depends on it"
    path = own_path(change.path)
    return next((say(going) for pattern, say in _FOLLOWS.items() if fnmatchcase(path, pattern)), _FROM_HERE)


def own_path(path: str) -> str:
    """Say a path inside of one of several steps as that of an ordinary recipe.

    >>> own_path("steps.critic.optimizer.lr"), own_path("optimizer.lr")
    ('optimizer.lr', 'optimizer.lr')
    """
    return path.split(".", 2)[-1] if path.startswith("steps.") else path


def _rates(recipe: Recipe, state: State) -> str:
    """Say the learning rate of the next iteration, as far as the recipe alone says it; of several steps, each."""
    rates = {name: _rate(part, state) for name, part in recipe.parts.items()}
    return ", ".join(
        f"{rate:.6g} ({name})" if name else f"{rate:.6g}" for name, rate in rates.items() if rate is not None
    )


def _rate(part: Part, state: State) -> float | None:
    base = part.optimizer.hyper().get("lr")
    maps = Plan(part.schedule)(int(state["epoch"]), int(state["iter"]))
    if base is None:
        return None
    return float(maps["lr"](base)) if "lr" in maps else float(base)


def covered(path: str, asked: Iterable[str]) -> bool:
    """Say whether a change was asked for: at this path, or above it.

    >>> covered("optimizer.lr", ["optimizer"]), covered("optimizer.lr", ["optimizer.l"])
    (True, False)
    """
    return any(path == each or path.startswith(f"{each}.") for each in asked)
