"""Retention: what is not kept is removed, and nothing else; what points to the best points to one that is there."""

from __future__ import annotations

import pytest
import torch

import purerun as pr
from purerun.checkpoint import (
    Best,
    CheckpointError,
    NotRemoved,
    name_of,
    names,
    path_of,
    point,
    pointers,
    prune,
    remove,
)
from purerun.testing import counted

ACCURACY = Best("accuracy")


def judged(iter, **scores):
    values = {name: torch.tensor(value) for name, value in scores.items()}
    return counted(iter=iter, scores={"iter": torch.tensor(iter), **values} if scores else {})


@pytest.fixture
def run(tmp_path):
    """A run of four checkpoints, two of which were judged."""
    for state in (judged(1, accuracy=0.9), judged(2, accuracy=0.5), judged(3), judged(4)):
        pr.save(state, path_of(tmp_path, int(state["iter"])))
    point(tmp_path, name_of(4))
    return tmp_path


def there(run):
    return [int(name.removeprefix("iter_")) for name in names(run)]


def test_a_pointer_goes_when_nothing_is_the_best(run):
    """None of those that are left has the score."""
    prune(run, None, [ACCURACY])
    assert {"last": name_of(4), "best_accuracy": name_of(1)} == pointers(run)
    for iter in (1, 2):
        remove(run, name_of(iter))
    prune(run, None, [ACCURACY])

    assert {"last": name_of(4)} == pointers(run)


def test_a_pointer_goes_with_its_checkpoint(run):
    """Also one of a score that is no longer asked for."""
    prune(run, None, [ACCURACY])
    prune(run, 2)

    assert ([3, 4], {"last": name_of(4)}) == (there(run), pointers(run))


def test_a_pointer_to_what_is_kept_stays(run):
    """Of a score that is no longer asked for, too."""
    prune(run, None, [ACCURACY])
    prune(run, None, [Best("loss")])

    assert {"last": name_of(4), "best_accuracy": name_of(1)} == pointers(run)


def test_a_damaged_pointer_of_nothing_goes(run):
    """What it holds does not matter."""
    (run / "checkpoints" / "best_loss").write_text("hello")
    prune(run, None, [Best("loss")])

    assert not (run / "checkpoints" / "best_loss").exists()


@pytest.mark.parametrize("what", ["fork/log.jsonl", "notes.txt"])
def test_what_somebody_put_into_a_checkpoint_is_not_removed(run, what):
    """The checkpoint stays as it is, whole, the others go, and it is said."""
    mine = path_of(run, 1) / what
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("precious")
    with pytest.warns(NotRemoved, match=f"00000001: not removed, since it holds {what.split('/')[0]} beside a check"):
        prune(run, 1)

    assert ([1, 4], "precious") == (there(run), mine.read_text())
    assert 1 == int(pr.load(path_of(run, 1))["iter"])
    with pytest.raises(CheckpointError, match="not removed"):
        remove(run, name_of(1))
    assert "precious" == mine.read_text()
