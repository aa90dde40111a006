"""The one error of this room."""

from __future__ import annotations


class HistoryError(ValueError):
    """A question about the history of a run has no answer; the message says why and what to do."""
