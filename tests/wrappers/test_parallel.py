"""Data parallel: real processes compute what one computes on the same shards, bit for bit."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

import purerun as pr
from purerun.batch import BatchError
from purerun.testing import check_everything
from tests.wrappers import shared_runs as runs
from tests.wrappers.team import Team


@pytest.fixture(scope="module")
def teams():
    """One, two and four processes, started once for all tests."""
    made = {count: Team(count) for count in (1, 2, 4)}
    yield made
    for team in made.values():
        team.close()


def only(answers):
    """Check that all processes say the same, and say it."""
    assert all(answers[0] == answer for answer in answers)
    assert not isinstance(answers[0], str) or "Error" not in answers[0], answers[0]
    return answers[0]


class TestSameBits:
    def test_any_number_of_processes_computes_the_same_bits(self, teams):
        """Optimizers, wrappers, policies of buffers, losses, uneven and empty shards, sources: digests and reports."""
        one, two, four = (only(teams[count](runs.digests)) for count in (1, 2, 4))

        assert one == two
        assert one == four

    def test_large_gradients_travel_otherwise_and_arrive_the_same(self, teams):
        """By all-reduce between two, pairwise between four."""
        one, two, four = (only(teams[count](runs.much)) for count in (1, 2, 4))

        assert one == two
        assert one == four

    @pytest.mark.parametrize("policy", ["shard", "first", "mean"])
    @pytest.mark.parametrize("rule", ["sgd", "adamw"])
    def test_a_run_moves_between_numbers_of_processes(self, teams, tmp_path, policy, rule):
        """2 -> 1 -> 4, in open windows, under an autocast, clipped and averaged: the same state and the same losses."""
        digest, losses = only(teams[1](runs.stretch, policy, rule, "", str(tmp_path / "whole"), 9))
        places = ["", *(str(tmp_path / name) for name in "abc")]
        moved = [
            only(teams[count](runs.stretch, policy, rule, before, after, iters))
            for count, before, after, iters in zip((2, 1, 4), places, places[1:], (3, 5, 9), strict=False)
        ]

        assert digest == moved[-1][0]
        assert losses == [loss for _, some in moved for loss in some]

    def test_a_loop_of_ones_own_takes_its_shards_of_whole_batches(self, teams):
        """In each process, and with the same result as a TrainLoop."""
        answers = {only(teams[count](runs.by_hand)) for count in (1, 2, 4)}

        assert {only(teams[1](runs.in_a_loop))} == answers


class TestAllReduce:
    def test_an_all_reduce_agrees_to_rounding(self, teams):
        """With itself in all processes exactly; with the tree to rounding.  Five shards, four processes."""
        one = only(teams[1](lambda_free_reduced, False))
        for large in (False, True):
            four = only(teams[4](lambda_free_reduced, large))
            for name, numbers in one.items():
                assert torch.allclose(torch.tensor(numbers), torch.tensor(four[name]), rtol=1e-4, atol=1e-5), name

    def test_the_gradient_is_that_of_ddp(self, teams):
        """To rounding, at two processes."""
        ours, ddp = (torch.tensor(only(teams[2](*call))) for call in ((runs.gradient, 2), (runs.gradient_by_ddp,)))

        assert torch.allclose(ddp, ours, rtol=1e-5, atol=1e-7)


class TestReading:
    def test_each_process_reads_its_share_only(self, teams):
        """Together they read each sample once."""
        shares = teams[2](runs.reads)

        # 16 = 4 * 4, and the last 9 = 3 + 2 + 2 + 2.
        assert [8 + 8 + 5, 8 + 8 + 4] == [len(share) for share in shares]
        assert list(range(runs.SAMPLES)) == sorted(index for share in shares for index in share)

    def test_only_the_first_process_has_sinks(self, teams, tmp_path):
        """So that one writes."""
        first, second = teams[2](runs.watched, str(tmp_path))

        assert "iter_00000002" in first or "checkpoints" in first
        assert [] == second


class TestTogether:
    def test_a_number_that_does_not_fit_is_refused(self, teams):
        """Naming those that do."""
        for answer in teams[4](runs.misfit, 3):
            assert "ValueError: expected a number of processes between which 3 shards can be divided" in answer
            assert "[1, 2], got 4" in answer

    def test_processes_must_begin_with_one_state(self, teams):
        """Others would drift apart without a word."""
        for alone in (True, False):
            answers = teams[2](runs.strangers, alone)
            assert all("StateError: expected all 2 processes to begin with one" in a for a in answers)

    def test_shards_must_report_the_same_terms(self, teams):
        """In all processes, or their sums would mean nothing."""
        assert all("LossError: expected the loss to report the same terms" in a for a in teams[2](runs.other_terms))

    def test_all_stop_after_the_same_iteration(self, teams):
        """Whoever is asked to."""
        for rank in (0, 1):
            assert [3, 143] == only(teams[2](runs.stopped_by, rank))

    def test_they_talk(self, teams):
        """The small words mean the same everywhere."""
        assert ["from 0", 3, [0, 1, 2, 3]] == only(teams[4](runs.told))

    def test_a_lost_process_ends_the_others(self):
        """With an error that says so."""
        team = Team(2)
        first, second = team(runs.dying)
        team.processes[1].join(10)
        team.processes[0].kill()
        team.close()

        assert "ProcessLost: expected 2 processes that answer each other" in first
        assert "gone" == second
        assert 7 == team.processes[1].exitcode


def test_workers_make_the_same_shards():
    """Each a batch by itself, with the chance of its samples and its own."""
    made = runs.step(pr.DataParallel(4))

    assert runs.run(made, runs.drawn()) == runs.run(made, runs.drawn(workers=2))


def lambda_free_reduced(large):
    """Be sent to a process, which a lambda cannot be."""
    return runs.reduced(large=large)


def linear(*wrappers, loss=lambda model, b: model(b).square().mean()):
    """Make a step in double precision."""
    torch.manual_seed(0)
    return pr.wrap(pr.TrainStep(nn.Linear(3, 2).double(), loss, pr.optim.SGD(lr=0.1)), *wrappers)


class TestMeaning:
    """In one process, against what one would write by hand."""

    @pytest.mark.parametrize("samples", [1, 3, 8, 11])
    def test_shards_add_up_to_the_big_batch(self, samples):
        """Each counts by its samples, and empty ones by nothing."""
        x = torch.randn(samples, 3, dtype=torch.float64)
        plain, cut = linear(), linear(pr.DataParallel(4))
        big, sharded = plain.grad(plain.init(), x), cut.grad(cut.init(), x)

        assert samples == sharded.weight
        for name, grad in big.grads.items():
            assert torch.allclose(grad, sharded.grads[name], rtol=1e-12, atol=1e-14)
        assert torch.allclose(big.metrics["loss"], sharded.metrics["loss"])

    def test_the_gradient_is_the_mean_of_the_shards_gradients(self):
        """Bit for bit, added as ((0 1) (2 3))."""
        torch.manual_seed(0)
        x = torch.randn(8, 3)
        model = nn.Linear(3, 2)
        step = pr.wrap(pr.TrainStep(model, lambda m, b: m(b).square().mean(), pr.optim.SGD(lr=0.1)), pr.DataParallel(4))
        shards = [torch.autograd.grad(model(part).square().mean(), model.weight)[0] * 2 for part in x.chunk(4)]

        assert torch.equal(
            ((shards[0] + shards[1]) + (shards[2] + shards[3])) / 8, step.grad(step.init(), x).grads["weight"]
        )

    @pytest.mark.parametrize("policy", ["shard", "first", "mean"])
    def test_buffers_follow_their_policy(self, policy):
        """As four copies of a batch norm do."""
        x = torch.randn(3, 10, 2)
        step = pr.wrap(
            pr.TrainStep(nn.BatchNorm1d(2), lambda m, b: m(b).square().mean() + 0, pr.optim.SGD(lr=0.0)),
            pr.DataParallel(4, buffers=policy),
        )
        state, norms = step.init(), [nn.BatchNorm1d(2) for _ in range(4)]
        for batch in x:
            state = step(state, batch)
            norms = _forward(norms, batch.tensor_split(4), policy)

        for name, buffer in norms[0].named_buffers():
            assert torch.allclose(buffer, state["buffers", name], atol=1e-7)
        if policy == "shard":
            for place, norm in enumerate(norms[1:]):
                assert torch.equal(norm.running_mean, state["shards", "running_mean"][place])
        else:
            assert "shards" not in state.names()

    def test_each_shard_has_its_own_chance(self):
        """That of (seed, "step", iter, shard)."""
        seen = []

        def loss(model, batch):
            seen.append(torch.rand(()).item())
            return model(batch).mean()

        step = linear(pr.DataParallel(3), loss=loss)
        step(step.init(seed=5), torch.ones(3, 3, dtype=torch.float64))
        expected = []
        for shard in range(3):
            with pr.random.keyed(pr.Key.of(5, "step", 0, shard)):
                expected.append(torch.rand(()).item())

        assert expected == seen

    def test_the_halves_of_a_step_are_the_step(self):
        """The other shards' buffers pass through `Grads`."""
        made = runs.step(pr.DataParallel(4))
        state, batch = made.init(), runs.batches()[0]

        assert pr.digest(made(state, batch)) == pr.digest(made.update(state, made.grad(state, batch)))


def _forward(norms, parts, policy):
    """Run copies of a batch norm on the shards, and say what they are before the next batch."""
    for norm, part in zip(norms, parts, strict=True):
        norm(part)
    if policy == "shard":
        return norms
    kept = deepcopy(norms[0])
    if policy == "mean":
        for name in ("running_mean", "running_var"):
            pairs = zip(norms, parts, strict=True)
            setattr(kept, name, sum(len(part) * getattr(norm, name) for norm, part in pairs) / sum(map(len, parts)))
    return [deepcopy(kept) for _ in norms]


class TestRefusals:
    def test_what_makes_no_sense_is_refused(self):
        """With the reason."""
        with pytest.raises(ValueError, match="wrap once with it"):
            linear(pr.DataParallel(2), pr.DataParallel(2))
        line = pr.TrainStep(nn.Linear(1, 1), runs.plain_loss, pr.optim.Torch(torch.optim.LBFGS))
        with pytest.raises(ValueError, match="searches along a line"):
            pr.DataParallel(2)(line)
        with pytest.raises(ValueError, match="`shards` should"):
            pr.DataParallel(0)
        step = linear(pr.DataParallel(2))
        with pytest.raises(BatchError, match="got an empty one"):
            step(step.init(), torch.ones(0, 3, dtype=torch.float64))

    def test_the_share_of_another_cut_is_refused(self):
        """A loader that was opened for other shards."""
        step = linear(pr.DataParallel(2))
        with pr.Loader(torch.ones(4, 3).double(), batch_size=4).open(0, shard=range(3), shards=3) as session:
            batch, _ = next(session.read(0, 0))
        with pytest.raises(BatchError, match="open the loader with"):
            step(step.init(), batch)

    def test_the_error_of_a_shard_names_its_batch(self):
        """As that of a whole batch does."""
        step = linear(pr.DataParallel(2))
        with pytest.raises(BatchError, match=r"float64 \[2, 4\]"):
            list(pr.TrainLoop(step, epochs=1)(step.init(), [torch.ones(4, 4, dtype=torch.float64)]))


@pytest.mark.parametrize("policy", ["shard", "first", "mean"])
def test_every_law_holds(policy):
    """Resume, purity, values equal lease: with a memory for each shard."""
    made = runs.step(pr.DataParallel(3, buffers=policy), optimizer=runs.ADAMW)

    check_everything(pr.TrainLoop(made, epochs=2), made.init(seed=3), runs.loader(14))


def test_the_number_of_processes_is_not_in_the_fingerprint():
    """The program is the same on any number."""
    assert "DataParallel(shards=4" in runs.step(pr.DataParallel(4)).text().splitlines()[-1]
