"""When a sample was trained on: orders are functions, so nothing is read but the manifests."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import attrs

from purerun.data import Loader, Reader, Source
from purerun.data.plan import Epoch
from purerun.history.error import HistoryError
from purerun.history.stretches import fitted, stretches
from purerun.history.timeline import timeline
from purerun.recipe import Recipe

_BLOCK = 1 << 20  # positions looked up at once


@attrs.frozen
class Sighting:
    """One time that a sample was trained on.

    Attributes:
        iter: in this iteration; the first one is 1.
        epoch: in this epoch; the first one is 0.
        position: here in the order of the epoch; the first one is 0.
    """

    iter: int
    epoch: int
    position: int


def seen(run: str | Path, recipe: Recipe, sample: int) -> Iterator[Sighting]:
    """List when a sample was trained on, up to where the run stands.

    Args:
        run: its directory.
        recipe: of its recipe file; what the run had set otherwise is set again.
        sample: index in the dataset that the run is trained on.

    Raises:
        HistoryError: there is no such run or sample, or its batches do not come from a Loader.

    >>> import tempfile
    >>> recipe = pr.Recipe(
    ...     model=pr.Module(torch.nn.Linear, in_features=2, out_features=1),
    ...     loss=lambda model, batch: model(batch[0]).mean(),
    ...     train=pr.Loader(pr.data.Tensors(torch.ones(8, 2)), batch_size=4),
    ...     optimizer=pr.optim.SGD(lr=0.1),
    ...     epochs=2,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pr.recipe.train(recipe, folder)
    ...     list(seen(folder, recipe, 5))
    [Sighting(iter=2, epoch=0, position=5), Sighting(iter=4, epoch=1, position=5)]
    """
    stand = timeline(run).stand
    iter = epoch = cursor = 0
    for stretch in stretches(None, stand):
        value = fitted(recipe, stretch.recipe)
        loader = _loader(value.train, sample)
        while iter < stretch.stop:
            cuts = loader.epoch(value.seed, epoch, cursor)
            stops = list(islice(_stops(cuts, cursor), stretch.stop - iter))
            if stops:
                for position in _positions(cuts.reader(), cursor, stops[-1], sample):
                    yield Sighting(iter + 1 + bisect_right(stops, position), epoch, position)
            iter += len(stops)
            # A changed batch size can leave a tail that is dropped: then the epoch ends without a batch.
            ended = not stops or cuts.stop(stops[-1]) is None
            epoch, cursor = (epoch + 1, 0) if ended else (epoch, stops[-1])
    counters = stand.manifest.counters
    if (epoch, cursor) != (counters["epoch"], counters["cursor"]):
        raise HistoryError(
            f"{stand.path}: expected epoch {epoch}, cursor {cursor} after {iter} iterations of this recipe, got epoch "
            f"{counters['epoch']}, cursor {counters['cursor']}; is the dataset as it was?"
        )


def _loader(source: Source, sample: int) -> Loader:
    if not isinstance(source, Loader):
        raise HistoryError(
            f"expected a pr.Loader, which knows its order without reading, got {type(source).__name__}; "
            "which samples it gave only reading can tell"
        )
    size = len(source.dataset)
    if not 0 <= sample < size:
        raise HistoryError(f"expected a sample from 0 to {size - 1}, the indices of the dataset, got {sample}")
    return source


def _stops(cuts: Epoch, cursor: int) -> Iterator[int]:
    """List where the batches of an epoch end."""
    stop = cuts.stop(cursor)
    while stop is not None:
        yield stop
        stop = cuts.stop(stop)


def _positions(read: Reader, start: int, stop: int, sample: int) -> Iterator[int]:
    """Find a sample in an epoch's order."""
    for first in range(start, stop, _BLOCK):
        found = read(first, min(first + _BLOCK, stop)) == sample
        yield from (first + place for place in found.nonzero().flatten().tolist())
