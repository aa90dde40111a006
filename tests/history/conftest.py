"""Runs for a test to spoil; each is trained only once."""

from __future__ import annotations

import shutil

import pytest

from tests.history.runs import ran


@pytest.fixture(scope="session")
def _original(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("original") / "run")


@pytest.fixture(scope="session")
def _changed(tmp_path_factory):
    """A run whose batches and rate were changed at iteration 6; it is saved after 5, 6, 10 and 14."""
    run = ran(tmp_path_factory.mktemp("changed") / "run", "epochs=2")
    return ran(run, "epochs=4", "train.batch_size=6", "optimizer.lr=0.05", resume="last")


@pytest.fixture
def run(_original, tmp_path):
    """A run of the recipe, for one test to spoil."""
    return shutil.copytree(_original, tmp_path / "run")


@pytest.fixture
def changed(_changed, tmp_path):
    """A run that was changed on its way, for one test to spoil."""
    return shutil.copytree(_changed, tmp_path / "changed")
