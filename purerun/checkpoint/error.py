"""The one error of this room."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint cannot be written, found or believed; the message says which, why and what to do."""
