"""News of validations: when the scores of a state were made anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from purerun.checkpoint import JSON, encoded
from purerun.hooks.scores import grouped
from purerun.population import spread


@attrs.frozen
class Judged:
    """The scores of one validation.

    Attributes:
        iter: the iteration whose state was judged.
        scores: name -> value.
    """

    iter: int
    scores: dict[str, float]


class Scores:
    """What is known of the scores in a state.

    A validation is noticed by its counter, so that it is noticed when it gives the same scores
    again.  Scores without a counter are news when one of them has another value.

    Attributes:
        members: of the population that is judged; 0 for a single run.
    """

    def __init__(self) -> None:
        self._groups: dict[str, tuple[str, ...]] | None = None
        self._known: dict[str, JSON] = {}
        self.members = 0

    def news(self, scores: Mapping[str, Any], iter: int) -> tuple[Judged, ...]:
        """Give the validations that have happened since the last look.

        Args:
            scores: the entry of the state.
            iter: the iteration that it is of.
        """
        scores = spread(scores, self.members)
        if self._groups is None:
            self._groups = grouped(scores)
        news: tuple[Judged, ...] = ()
        for counter, names in self._groups.items():
            now: JSON = scores[counter].item() if counter else [encoded(scores[name].item()) for name in names]
            if now != self._known.get(counter):
                news += self._news(counter, now, iter, {name: scores[name].item() for name in names})
        return news

    def memory(self) -> JSON:
        """Say what is known: counter -> its value; the values themselves where there is none."""
        return dict(self._known)

    def recall(self, memory: Mapping[str, JSON]) -> None:
        """Go on with what was known."""
        self._known = dict(memory)

    def _news(self, counter: str, now: JSON, iter: int, scores: dict[str, float]) -> tuple[Judged, ...]:
        before, self._known[counter] = self._known.get(counter), now
        judged = now if isinstance(now, int) else iter
        # At first sight, scores of another iteration are old: only those from before training are told.
        told = before is not None or (counter and judged in (0, iter))
        return (Judged(judged, scores),) if told else ()
