"""What goes wrong in this room."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint cannot be written, found or believed; the message says which, why and what to do."""


class SaveError(CheckpointError):
    """A checkpoint cannot be written: the disk is full, say; what was there before is as good as it was."""
