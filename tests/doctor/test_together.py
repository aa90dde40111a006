"""Many faults in one recipe: none hides another."""

from __future__ import annotations

import attrs

import purerun as pr
from purerun.doctor import examination
from tests.doctor import faults
from tests.doctor.faults import recipe
from tests.doctor.marks import marked, pointed

MARKS = marked("faults.py")

PLANTED = [
    "own generator",
    "unseeded",
    "collate",
    "batch transform",
    "counter",
    "batch in place",
    "merge",
    "compute",
    "class list",
    "undeclared",
    "clock in a hook",
    "memory without effect",
]


def loss(model, batch):
    """Count in the model, and write into the batch."""
    return faults.writing_loss(model, batch)


def test_twelve_faults_are_found_at_once():
    """In every part, each with its line; what needs sound parts is left out and says so."""
    kinds = [faults.Undeclared, faults.Clocked, faults.Silent]
    train = pr.Loader(
        faults.OwnGenerator(),
        batch_size=8,
        transform=faults.unseeded,
        collate=faults.noisy_collate,
        batch_transform=faults.noisy_batch,
    )
    sick = attrs.evolve(
        recipe,
        train=train,
        model=pr.Module(faults.Counting),
        loss=loss,
        metrics={"first": faults.KeepsFirst(), "emptied": faults.Emptying(), "listed": faults.Forgetting()},
        hooks=[kind(every="1 iter") for kind in kinds],
    )
    every = examination(sick, iters=2, workers=0)
    findings = [finding for each in every for finding in each.findings]

    assert {MARKS[mark] for mark in PLANTED} == {pointed(each) for each in findings}
    assert len(PLANTED) == len(findings)
    assert ["step"] == [each.part for each in every if each.skipped]


def test_a_fault_in_one_of_several_steps_has_its_path():
    """The sound one is not blamed."""
    steps = {
        "sound": pr.Part(loss=faults.loss, optimizer=recipe.optimizer),
        "sick": pr.Part(loss=faults.seeding_loss, optimizer=pr.optim.Adam()),
    }
    sick = attrs.evolve(recipe, loss=None, optimizer=None, steps=steps)
    (finding,) = [finding for each in examination(sick, iters=2, workers=0) for finding in each.findings]

    assert "steps.sick.loss" == finding.part
    assert pointed(finding) in MARKS.values()


def test_rules_that_match_nothing_are_found():
    """Before a run would begin with other weights than were meant."""
    every = examination(attrs.evolve(recipe, init=[pr.initial.Normal("nothing.*")]), iters=2, workers=0)
    (finding,) = [finding for each in every for finding in each.findings]

    assert "InitialError: expected Name(patterns=('nothing.*',)) to match a parameter" in finding.message


def test_a_source_with_two_faults():
    """It remembers, and it cannot begin in the middle; the second does not hide behind the first."""
    findings = examination(attrs.evolve(recipe, train=faults.Pages()), iters=2, workers=0)[0].findings

    assert [MARKS["page"], MARKS["no seek"]] == [pointed(each) for each in findings]


def test_the_run_is_examined_without_its_faulty_parts():
    """So that what is known is not told again, and what is not known still shows."""
    sick = attrs.evolve(
        recipe,
        train=pr.Loader(faults.OwnGenerator(), batch_size=8),
        metrics={"share": faults.KeepsFirst()},
        hooks=[faults.Silent(every="1 iter"), faults.Turning(every="1 iter")],
    )
    every = examination(sick, iters=3, workers=0)
    run = every[-1]

    assert "run" == run.part
    assert "without train, hooks.0, metrics.share" in run.checked
    assert [MARKS["due"]] == [pointed(each) for each in run.findings]


def test_a_line_is_named_once_for_a_law():
    """The same transform of two sources is one fault, but neither source is called sound."""
    loader = pr.Loader(faults.Pairs(), batch_size=8, transform=faults.unseeded)
    every = examination(attrs.evolve(recipe, train=loader, val=loader), iters=2, workers=0)

    assert 1 == sum(len(each.findings) for each in every)
    assert {"train.transform", "val.transform"} == {each.part for each in every if not each.is_sound}
