"""Steps are transactions: an exception anywhere in one leaves the state before it whole, and saved."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

import purerun as pr
from purerun.step import NonFiniteLoss
from purerun.wrappers import Wrapper

FATAL = 3
"""The iteration that fails: three are done before it."""


class Broken(RuntimeError):
    """What the tests break with."""


@attrs.frozen
class Breaking(Wrapper):
    """Break one half of the fourth step, before or after the inner one has had its turn."""

    half: str
    after: bool = attrs.field(kw_only=True)

    def read(self, step, draft, batch, how):
        return self._broken("read", draft, lambda: step.read(draft, batch, how))

    def write(self, step, draft, grads):
        self._broken("write", draft, lambda: step.write(draft, grads))

    def _broken(self, half, draft, inner):
        if half != self.half or int(draft["iter"]) != FATAL:
            return inner()
        if self.after:
            inner()
        raise Broken


def mean(model, x):
    """Compute a loss that is broken by a batch of infinite numbers, and not finite by NaN."""
    if x.isinf().any():
        raise Broken
    return model(x).square().mean()


def make(*wrappers):
    """Make a step with buffers, chance, slots and an open window at the fourth iteration."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    step = pr.TrainStep(model, mean, pr.optim.AdamW(lr=0.01))
    return pr.wrap(step, wrappers[0], pr.Accumulate(2), *wrappers[1:]) if wrappers else pr.wrap(step, pr.Accumulate(2))


@attrs.frozen
class Nothing(Wrapper):
    """A wrapper that does nothing."""


def spoilt(value):
    """Make batches of which the fourth is spoilt."""
    batches = list(torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0)))
    batches[FATAL] = torch.full((4, 2), value) if value is not None else batches[FATAL]
    return batches


def reading():
    """Read batches from what breaks before the fourth."""

    class Source(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, index):
            if index == 4 * FATAL:
                raise Broken
            return spoilt(None)[index // 4][index % 4]

    return pr.Loader(Source(), batch_size=4)


WHOLE = {
    "loss": (make(), spoilt(torch.inf), Broken),
    "not finite": (make(), spoilt(torch.nan), NonFiniteLoss),
    "wrong shape": (make(), [*spoilt(None)[:FATAL], torch.ones(4, 3)], pr.batch.BatchError),
    "before the forward pass": (make(Breaking("read", after=False)), spoilt(None), Broken),
    "after the backward pass": (make(Breaking("read", after=True)), spoilt(None), Broken),
    "data": (make(), reading(), Exception),
}
WRITES = {
    f"{'after' if after else 'before'} {where} window": make(*wrappers)
    for after in (False, True)
    for where, wrappers in {
        "in the": (Breaking("write", after=after),),
        "around the": (Nothing(), Breaking("write", after=after)),
    }.items()
}


def broken(step, loader, error, directory, *, lease):
    """Run into an error; say how, and the digests of the states before it."""
    loop = pr.TrainLoop(step, iters=6, lease=lease)
    run = pr.watch(loop(step.init(1), loader), pr.sinks.Checkpoint(directory, every="2 iters", last=True))
    digests: list[str] = []
    with pytest.raises(error) as caught:
        digests.extend(map(pr.digest, run))
    assert FATAL == len(digests)
    return caught.value, digests


def goes_on(directory, step):
    """Go on from a checkpoint with batches that are good; compare with a run that nothing has stopped."""
    state = step.adopt(pr.load(directory))  # without what breaks
    rest = [pr.digest(each) for each in pr.TrainLoop(step, iters=6)(state, spoilt(None))]
    whole = [pr.digest(each) for each in pr.TrainLoop(step, iters=6)(step.init(1), spoilt(None))]
    return rest == whole[int(state["iter"]) :]


@pytest.mark.parametrize("lease", [False, True], ids=["values", "lease"])
@pytest.mark.parametrize(("step", "loader", "error"), WHOLE.values(), ids=WHOLE)
def test_before_the_update_every_error_leaves_the_last_state_saved(step, loader, error, lease, tmp_path):
    """Though the forward pass has written into the buffers, and a window is open."""
    _, digests = broken(step, loader, error, tmp_path, lease=lease)

    assert digests[-1] == pr.digest(pr.load(tmp_path))
    assert goes_on(tmp_path, make())


@pytest.mark.parametrize("step", WRITES.values(), ids=WRITES)
def test_an_error_in_the_update_of_a_value_leaves_it_saved(step, tmp_path):
    """Also where half of the update is written already."""
    _, digests = broken(step, spoilt(None), Broken, tmp_path, lease=False)

    assert digests[-1] == pr.digest(pr.load(tmp_path))
    assert goes_on(tmp_path, make())


@pytest.mark.parametrize("step", WRITES.values(), ids=WRITES)
def test_an_error_in_the_update_of_a_leased_state_leaves_the_last_checkpoint(step, tmp_path):
    """The memory of a leased state is the next one's: the error says so, and the last checkpoint is good."""
    error, digests = broken(step, spoilt(None), Broken, tmp_path, lease=True)

    assert any("go on from the last checkpoint" in note for note in error.__notes__)
    assert digests[1] == pr.digest(pr.load(tmp_path))
    assert goes_on(tmp_path, make())
