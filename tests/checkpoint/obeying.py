"""Permissions, which root does not obey: for these tests it does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.faults.server import drop_capabilities


def obeying(act):
    """Do something on a thread that has no privileges; they are of each thread by itself."""
    with ThreadPoolExecutor(max_workers=1, initializer=drop_capabilities) as thread:
        return thread.submit(act).result()
