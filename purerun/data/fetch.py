"""Making one batch from its task: the same bits in the main process and in any worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch.utils.data import default_collate

from purerun.data.augment import Augment
from purerun.data.chance import Chance
from purerun.data.draws import Draws
from purerun.data.nest import cut
from purerun.data.plan import Task
from purerun.data.tensors import Tensors
from purerun.random import Key, keyed_everywhere, seed_everywhere

Collate = Callable[[list[Any]], Any]
Transform = Callable[[Any], Any]
BatchTransform = Callable[[Any, Chance], Any]


@attrs.frozen
class Fetch:
    """A map from tasks to batches.

    Every sample is made, and transformed, with the global generators of torch, numpy and
    Python at the key (seed, "sample", epoch, position); collating and the transform of the
    batch follow at the key (seed, "batch", epoch, first position).
    """

    dataset: Any
    seed: int
    collate: Collate | None = None
    transform: Transform | None = None
    batch_transform: BatchTransform | None = None
    # Whether a batch is taken from tensors by one look-up, with no Python for each sample.
    _at_once: bool = attrs.field(init=False, eq=False, repr=False)
    _from_chance: bool = attrs.field(init=False, eq=False, repr=False)
    _draws: Draws = attrs.field(factory=Draws, init=False, eq=False, repr=False)

    @_at_once.default
    def _find_at_once(self) -> bool:
        return isinstance(self.dataset, Tensors) and self.transform is None and self.collate is None

    @_from_chance.default
    def _find_from_chance(self) -> bool:
        return isinstance(self.batch_transform, Augment | None)

    def __getitem__(self, task: Task) -> Any:
        """Make a batch and leave the global generators wherever that takes them: for workers."""
        if self._at_once:
            if not self._from_chance:
                self._seed_batch(task)
            return self.finished(self.dataset.rows(torch.from_numpy(task.indices)), task)
        return self.collated(self._samples(task), task)

    def guarded(self, task: Task) -> Any:
        """Make a batch and put the global generators back: for the main process."""
        if self._at_once and self._from_chance:
            return self[task]
        with keyed_everywhere(self._batch_key(task)):
            return self[task]

    def collated(self, samples: Sequence[Any], task: Task) -> Any:
        """Make a batch from its samples."""
        self._seed_batch(task)
        return self.finished((self.collate or default_collate)(list(samples)), task)

    def finished(self, batch: Any, task: Task) -> Any:
        """Transform a batch."""
        if self.batch_transform is not None:
            positions = torch.arange(task.start, task.start + len(task.indices), device="cpu")
            batch = self.batch_transform(batch, Chance(Key.of(self.seed, "sample", task.epoch), positions))
        return cut(batch, 0, 0) if task.empty else batch

    def _seed_batch(self, task: Task) -> None:
        seed_everywhere(self._batch_key(task))

    def _batch_key(self, task: Task) -> Key:
        return Key.of(self.seed, "batch", task.epoch, task.start)

    def _samples(self, task: Task) -> list[Any]:
        indices = task.indices.tolist()

        def key(place: int) -> Key:
            return Key.of(self.seed, "sample", task.epoch, task.start + place)

        def make(place: int) -> Any:
            try:
                sample = self.dataset[indices[place]]
                return sample if self.transform is None else self.transform(sample)
            except Exception as error:
                where = f"position {task.start + place} of epoch {task.epoch}"
                error.add_note(f"while making sample {indices[place]} of the dataset, at {where}")
                raise

        return self._draws.samples(make, key, len(indices))
