"""The protocol of training batches: what the loop asks of each way to learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from app.models.base import Batch, Sequences

AnyBatch = Batch | Sequences


class Batches(Protocol):
    """One worker's share of the training part, in shuffled batches.

    Everything random is a function of (seed, epoch, worker, step): a resumed epoch goes on with exactly the
    batches that it would have had. All workers have equally many steps.

    A kind of batches is made as `Kind(dataset, settings, loss, seed, rank=rank, world=world)`, from the data
    set, the recipe's [train], the model's loss, the seed, and which of how many workers this is.
    """

    @property
    def steps(self) -> int:
        """Batches of this worker in an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[AnyBatch]:
        """The batches of an epoch from step `start` on."""
        ...
