"""What a manifest claims beside the state itself, compared with what the run gives: its scores and its parent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from purerun.checkpoint import encoded
from purerun.history.replay import replay
from purerun.history.stretches import stretches
from purerun.history.timeline import Point
from purerun.hooks.scores import judged
from purerun.identity import digest
from purerun.recipe import Recipe
from purerun.state import State


@attrs.frozen
class Ancestors:
    """Digests of states that a run has come through, as far as anybody has asked for them.

    Attributes:
        known: these digests.
    """

    known: set[str] = attrs.field(factory=set, converter=set)

    def along(self, states: Iterable[State], parent: str | None) -> Iterator[State]:
        """Pass states on, and remember it if one that another follows is the parent that is looked for.

        Whoever keeps no checkpoint but the newest ones has removed the parent of the first of them.

        >>> ancestors, first = Ancestors(), pr.testing.counted(iter=1)
        >>> for _ in ancestors.along([first, pr.testing.counted(iter=2)], pr.digest(first)):
        ...     print(pr.digest(first) in ancestors.known)
        False
        True
        """
        before = ""
        for state in states:
            if before and before == parent:
                self.known.add(before)
            before = "" if parent is None or parent in self.known else digest(state)
            yield state


def false(recipe: Recipe, point: Point, state: State, ancestors: Ancestors) -> str:
    """Say what a manifest claims falsely; "" if all is true.

    A manifest that names no parent claims nothing: so does one of a checkpoint that was computed from the seed.

    Args:
        recipe: of the recipe file.
        point: the checkpoint.
        state: what is in it.
        ancestors: what is known already of the states before.

    Raises:
        Gone: the run cannot be computed from its seed, and what is known is not enough.
    """
    scores = {name: encoded(score) for name, score in judged(state).items()}
    told, parent = point.manifest.scores, point.manifest.parent
    odd = [name for name in {**scores, **told} if scores.get(name) != told.get(name)]
    if odd:
        pairs = (
            f"{name} {told.get(name, 'not at all')} where the state has {scores.get(name, 'none')}" for name in odd
        )
        return f"its manifest tells the score {', '.join(pairs)}"
    if parent is not None and not _is_earlier(recipe, point, parent, ancestors):
        return f"its manifest names the parent {parent}, and no earlier state of the run has that digest"
    return ""


def _is_earlier(recipe: Recipe, point: Point, parent: str, ancestors: Ancestors) -> bool:
    if parent not in ancestors.known:
        # After a rewind it may lie before the checkpoint before this one, and be removed since.
        for _ in ancestors.along(replay(recipe, stretches(None, point), ends=True), parent):
            if parent in ancestors.known:
                break
    return parent in ancestors.known
