"""The audit of a run: what agrees, what was altered, where a run took another way."""

from __future__ import annotations

import shutil

import attrs
import pytest
import torch

import purerun as pr
from purerun.checkpoint import path_of, read_manifest
from purerun.checkpoint.manifest import MANIFEST
from purerun.history import HistoryError, fork, rewind, verify
from purerun.recipe import override, train
from tests.history.runs import RAYS, RECIPE, WEIGHT, alter, digests, ran

WORDS = {"": "", "only this": "altered", "the run itself": "diverged", "altered, or": "open", "damaged": "damaged"}


def told(findings):
    """Say each finding in few words: from where, to where, in which leaf, and what of it."""
    return [
        (
            each.since,
            each.until,
            each.leaf.partition(":")[0],
            [w for why, w in WORDS.items() if each.why.startswith(why)][-1],
        )
        for each in findings
    ]


def test_a_good_run_agrees(run):
    """From the seed to the end."""
    assert [(0, 5, "", ""), (5, 10, "", ""), (10, 12, "", "")] == told(verify(run, RECIPE))


def test_a_run_that_was_changed_on_its_way_agrees(changed):
    """What its manifests say is done again."""
    assert [(0, 5, "", ""), (5, 6, "", ""), (6, 10, "", ""), (10, 14, "", "")] == told(verify(changed, RECIPE))


def test_a_run_whose_end_was_moved_agrees(run):
    """At the old end a window that was part full had been applied."""
    longer = ran(run.parent / "longer", "epochs=1")
    ran(longer, "epochs=3", resume="last")

    assert [(0, 3, "", ""), (3, 5, "", ""), (5, 9, "", "")] == told(verify(longer, RECIPE))


def test_a_run_that_was_pruned_agrees(run):
    """A change between two checkpoints that are left is made again where it was made."""
    pruned = ran(run.parent / "pruned", "epochs=2", "keep=2")
    ran(pruned, "epochs=4", "optimizer.lr=0.05", "keep=2", resume="last")

    assert [(0, 10, "", ""), (10, 12, "", "")] == told(verify(pruned, RECIPE))


@pytest.mark.parametrize("iter", [5, 10])
def test_an_altered_checkpoint_is_named_alone(run, iter):
    """What comes after it was computed from what it was before."""
    alter(run, iter)
    expected = [(0, 5, "", ""), (5, 10, "", ""), (10, 12, "", "")]
    place = [5, 10].index(iter)
    expected[place] = (*expected[place][:2], f"params/{WEIGHT}", "altered")

    assert expected == told(verify(run, RECIPE))


def test_the_finding_names_the_leaf_and_the_proof(run):
    """How much was changed, and which checkpoint shows it."""
    alter(run, 10)
    finding = list(verify(run, RECIPE))[1]

    assert f"params/{WEIGHT}: 1 of 12 elements differ, by at most 0.5" == finding.leaf
    assert "only this checkpoint was altered: from the recomputed state, iter_00000012 follows" == finding.why


def test_two_altered_checkpoints_are_both_named(run):
    """The line that is computed goes on past them."""
    alter(run, 5)
    alter(run, 10)

    assert [(0, 5, f"params/{WEIGHT}", "altered"), (5, 10, f"params/{WEIGHT}", "altered"), (10, 12, "", "")] == told(
        verify(run, RECIPE)
    )


def test_the_last_checkpoint_has_no_witness(run):
    """Whether it was altered, or came about so, nothing after it can tell."""
    alter(run, 12)

    assert [(0, 5, "", ""), (5, 10, "", ""), (10, 12, f"params/{WEIGHT}", "open")] == told(verify(run, RECIPE))


def test_a_run_that_took_another_way_is_told_from_an_altered_file(run, monkeypatch):
    """What comes after follows from the checkpoint as it is."""
    monkeypatch.setattr("tests.history.runs.RAYS", RAYS | {7})
    other = ran(run.parent / "other")
    monkeypatch.undo()
    findings = list(verify(other, RECIPE))

    assert [(0, 5, ""), (5, 10, "diverged"), (10, 12, "")] == [
        (since, until, why) for since, until, _, why in told(findings)
    ]
    assert findings[1].leaf


def test_an_altered_checkpoint_of_no_number_is_named(run):
    """Nothing can be computed from it; the line past it can."""
    alter(run, 5, {"params": {WEIGHT: torch.full((4, 3), float("nan"))}})

    assert [(0, 5, f"params/{WEIGHT}", "altered"), (5, 10, "", ""), (10, 12, "", "")] == told(verify(run, RECIPE))


def test_a_damaged_checkpoint_is_told_and_left_out(run):
    """The segment around it is one."""
    file = path_of(run, 5) / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")

    assert [(None, 5, "", "damaged"), (0, 10, "", ""), (10, 12, "", "")] == told(verify(run, RECIPE))


def test_samples_are_segments_chosen_by_a_seed(run):
    """The same ones for the same seed; all of them when there are not so many."""
    every = told(verify(run, RECIPE))
    chosen = {seed: told(verify(run, RECIPE, samples=1, seed=seed)) for seed in range(6)}

    assert chosen[0] == told(verify(run, RECIPE, samples=1))
    assert {1} == {len(found) for found in chosen.values()}
    assert set(every) == {finding for found in chosen.values() for finding in found}
    assert every == told(verify(run, RECIPE, samples=9))


@pytest.mark.parametrize("seed", range(6))
def test_a_sample_that_does_not_agree_is_looked_at_with_its_neighbours(run, seed):
    """So that the checkpoint that it began with is named if that is the altered one."""
    alter(run, 5)
    findings = told(verify(run, RECIPE, samples=1, seed=seed))
    guilty = [(0, 5, f"params/{WEIGHT}", "altered")]

    assert [finding for finding in findings if finding[2]] in (guilty, [])
    assert findings == [(10, 12, "", "")] or findings[:1] == guilty


def sign(run, iter, **claims):
    """Let a manifest claim something else, with a good signature."""
    place = path_of(run, iter)
    manifest = attrs.evolve(read_manifest(place), **claims)
    (place / MANIFEST).write_text(manifest.text(), encoding="ascii")


@pytest.mark.parametrize("samples", [None, 9])
@pytest.mark.parametrize(
    ("iter", "claims", "why"),
    [
        (10, {"scores": {"accuracy": 0.99}}, "its manifest tells the score accuracy 0.99 where the state has none"),
        (12, {"scores": {"accuracy": 0.99}}, "its manifest tells the score accuracy 0.99 where the state has 0."),
        (12, {"scores": {}}, "its manifest tells the score accuracy not at all where the state has 0."),
        (10, {"parent": "a" * 64}, f"its manifest names the parent {'a' * 64}, and no earlier state of the run has"),
    ],
)
def test_a_manifest_that_claims_something_false_is_named(run, iter, claims, why, samples):
    """Its state is what was computed, and its signature is good."""
    sign(run, iter, **claims)
    found = {finding.until: finding for finding in verify(run, RECIPE, samples=samples)}

    assert found[iter].why.startswith(why)
    assert [until for until in (5, 10, 12) if until != iter] == [u for u, f in found.items() if f.agrees]
    assert "" == found[iter].leaf


@pytest.mark.parametrize("iter", [10, 12])
def test_a_state_is_not_its_own_parent(run, iter):
    """Nor is a later one."""
    sign(run, iter, parent=digests()[iter])
    sign(run, 5, parent=digests()[iter])

    assert [False, iter != 10, iter != 12] == [finding.agrees for finding in verify(run, RECIPE)]


def test_the_parent_of_an_altered_checkpoint_s_successor_is_the_recomputed_one(run):
    """That the successor was signed again to name the altered one is noticed."""
    alter(run, 5)
    sign(run, 10, parent=read_manifest(path_of(run, 5)).digest)

    assert [False, False, True] == [finding.agrees for finding in verify(run, RECIPE)]


def test_a_parent_that_is_gone_is_computed_again(run, changed):
    """It was pruned: at a change of the recipe, before the first checkpoint left, or since the run was taken back."""
    shutil.rmtree(path_of(run, 5))
    shutil.rmtree(path_of(changed, 6))
    early = ran(run.parent / "early", "keep=1")
    rewind(early, RECIPE, 11)

    assert [(0, 10, True), (10, 12, True)] == [(f.since, f.until, f.agrees) for f in verify(run, RECIPE)]
    assert [(0, 5, True), (5, 10, True), (10, 14, True)] == [
        (f.since, f.until, f.agrees) for f in verify(changed, RECIPE)
    ]
    assert [(0, 11, True), (11, 12, True)] == [(f.since, f.until, f.agrees) for f in verify(early, RECIPE)]


def test_a_run_that_goes_on_from_a_checkpoint_of_another_one_is_sound(run, tmp_path):
    """Its first parent was never in it; nor is that of a fork."""
    train(override(RECIPE, ["optimizer.lr=0.3"]), tmp_path / "a", resume=path_of(run, 10), asked=["optimizer.lr"])
    fork(run, RECIPE, 7, tmp_path / "b", ["optimizer.lr=0.3"])

    assert [True] == [finding.agrees for finding in verify(tmp_path / "a", RECIPE)]
    assert [True] == [finding.agrees for finding in verify(tmp_path / "b", RECIPE)]


def test_altered_data_are_another_recipe(run):
    """Tensors are in the recipe by their hash."""
    data = pr.data.Tensors(x=torch.zeros(20, 3), y=torch.arange(20) % 2)
    findings = list(verify(run, attrs.evolve(RECIPE, val=pr.Loader(data, batch_size=20))))

    assert {"it cannot be recomputed"} == {finding.why.partition(":")[0] for finding in findings}
    assert "val.dataset.entries.x" in findings[0].why


def test_nowhere_is_no_run(tmp_path):
    """A mistake is no finding."""
    with pytest.raises(HistoryError, match="expected the directory of a run"):
        list(verify(tmp_path, RECIPE))
