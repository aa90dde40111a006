"""What goes wrong in this room."""

from __future__ import annotations


class HistoryError(ValueError):
    """A question about the history of a run has no answer; the message says why and what to do."""


class Gone(HistoryError):
    """What a run began with is not here, or no longer what it was: from it nothing can be computed again."""
