"""The samples of an iteration, and the loss of each of them alone."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn
from torch.func import functional_call

import purerun as pr
from purerun.history import HistoryError, why
from purerun.sinks.log import NonFinite
from tests.history.runs import DATA, RECIPE, noise, ran


def states(recipe=RECIPE):
    """Keep all states of a run, computed without anything of the history's."""
    module = recipe.module()
    first = recipe.init(module)
    return [first, *recipe.train_loop(module)(first, recipe.train)]


def batches(recipe=RECIPE):
    """List what was trained on, in the order of the iterations: epoch, first position, batch."""
    found = []
    for epoch in range(4):
        start = 0
        for batch, position in recipe.train.read(recipe.seed, epoch, 0):
            found.append((epoch, start, batch))
            start = position.cursor
    return found


def alone(state, x, y):
    """Compute the loss of one sample by torch's own means."""
    module = RECIPE.module().eval()
    tensors = {**dict(state["params"].items()), **dict(state["buffers"].items())}
    return nn.functional.cross_entropy(functional_call(module, tensors, (x[None],)), y[None]).item()


@pytest.mark.parametrize("iter", [1, 5, 6, 9, 12])
def test_the_batch_is_the_one_that_was_trained_on(run, iter):
    """With its augmentation, at the state before, also across a window that is part full."""
    found = why(run, RECIPE, iter)
    before, after = states()[iter - 1 : iter + 1]
    epoch, start, batch = batches()[iter - 1]
    order = pr.data.Shuffle().indices(0, epoch, start, start + len(batch["x"]), 20).tolist()
    losses = [alone(before, x, y) for x, y in zip(batch["x"], batch["y"], strict=True)]

    assert (iter, epoch, "") == (found.iter, found.epoch, found.trouble)
    assert (after["metrics", "loss"].item(), after["metrics", "lr"].item()) == (
        found.report["loss"],
        found.report["lr"],
    )
    assert sorted(zip(range(start, start + len(order)), order, strict=True)) == sorted(
        (each.position, each.index) for each in found.samples
    )
    assert pytest.approx([losses[each.position - start] for each in found.samples]) == [
        each.loss for each in found.samples
    ]
    assert sorted(losses, reverse=True) == pytest.approx([each.loss for each in found.samples])


def test_the_settings_of_that_time_are_in_force(changed):
    """Six samples an iteration after the change, eight before."""
    assert [8, 6] == [len(why(changed, RECIPE, iter).samples) for iter in (5, 7)]
    assert 0.05 * 0.25 == why(changed, RECIPE, 7).report["lr"]


def test_a_tail_that_is_dropped_leads_to_the_next_epoch(run):
    """After a change of the batch size, what is left of an epoch may not fill a batch."""
    other = ran(run.parent / "other", "iters=2", "epochs=None")
    ran(other, "iters=4", "epochs=None", "train.drop_last=True", resume="last")
    found = why(other, RECIPE, 3)

    assert (1, list(range(8))) == (found.epoch, sorted(each.position for each in found.samples))


def test_the_worst_sample_comes_first(run):
    """A poisoned one is found where it was trained on."""
    x = DATA.rows(torch.arange(20))["x"].clone()
    x[13] = 1000.0
    data = pr.data.Tensors(x=x, y=torch.arange(20) % 2)
    recipe = attrs.evolve(RECIPE, train=pr.Loader(data, batch_size=8, shuffle=True, batch_transform=noise))
    poisoned = ran(run.parent / "poisoned", recipe=recipe)
    at = next(i for i, (_, _, batch) in enumerate(batches(recipe), 1) if batch["x"].max() > 900)

    assert 13 == why(poisoned, recipe, at).samples[0].index


def test_a_loss_that_is_no_number_comes_first(run):
    """It is what one looks for."""
    x = DATA.rows(torch.arange(20))["x"].clone()
    x[13] = float("nan")
    data = pr.data.Tensors(x=x, y=torch.arange(20) % 2)
    train = pr.Loader(data, batch_size=8, shuffle=True)
    recipe = attrs.evolve(RECIPE, train=train, nonfinite="allow", epochs=1)
    with pytest.warns(NonFinite):
        poisoned = ran(run.parent / "poisoned", recipe=recipe)
    at = next(i for i, (_, _, batch) in enumerate(batches(recipe), 1) if batch["x"].isnan().any())

    assert 13 == why(poisoned, recipe, at).samples[0].index


def pairwise(model, batch):
    """A loss of neighbours: one sample alone has none."""
    x, y = batch["x"], batch["y"]
    if len(x) < 2:
        raise RuntimeError("a pair is needed")
    return (model(x[1:]) - model(x[:-1])).square().mean() + 0 * y.sum()


def test_a_loss_that_needs_several_samples_says_so(run):
    """The whole batch is told all the same."""
    recipe = attrs.evolve(RECIPE, loss=pairwise)
    found = why(ran(run.parent / "pairs", recipe=recipe), recipe, 4)

    assert "the loss cannot take one sample alone (RuntimeError: a pair is needed)" == found.trouble
    assert [(0, None), (1, None)] == [(each.position, each.loss) for each in found.samples][:2]
    assert {"loss", "lr"} == set(found.report)


def test_batches_of_others_have_positions_only(run):
    """Which samples a list of batches was made from nobody knows."""
    rows = [DATA.rows(torch.arange(start, start + 10)) for start in (0, 10)]
    recipe = attrs.evolve(RECIPE, train=rows)
    found = why(ran(run.parent / "list", recipe=recipe), recipe, 4)

    assert {(None, position) for position in range(10, 20)} == {(each.index, each.position) for each in found.samples}
    assert all(each.loss is not None for each in found.samples)


def test_an_iteration_that_was_not_reached_is_refused(run):
    """The first one is 1."""
    for iter in (0, 13):
        with pytest.raises(HistoryError, match="expected an iteration from 1 to 12"):
            why(run, RECIPE, iter)
