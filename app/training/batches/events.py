"""Batches for models that learn from events: a row is an event with the history before it.

Everything is vectorised, and everything random is a function of (seed, epoch, worker, step):
a resumed epoch goes on with exactly the batches that it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from app.data.dataset import Array, Dataset
from app.errors import DataError, RecipeError
from app.models.base import Batch, Loss
from app.models.batch import batch_of
from app.recipe import Train
from app.training.batches.moments import histories_end, row_type
from app.training.batches.negatives import Draws, SeenPairs
from app.training.defaults import fitting_batch_size

REDRAWS = 3
NEEDS_NEGATIVES = ("bpr", "cross_entropy", "gbce", "cosine")
POSITIVES_ALONE = ("sampled_softmax", "softmax")  # other rows, or all items, are the negatives there


class EventBatches:
    """Batches of one worker's share of the training events.

    With negatives, a row is a positive event in column 0 and the sampled items behind it, with the
    labels 1 and 0. An item that the user has met is drawn again, up to REDRAWS times; one that is still
    drawn then stays (one draw in 100 for a user who met a third of the catalogue). Without negatives a
    row is any event with its logged label (its value under MSE).

    Args:
        repeats: True where items that the user has met will be ranked, too: they then are negatives
            like all others, or a model would learn that they are always right.
        history: False where the model has no history, which is then one event of zeros.
        rank, world: this worker and how many there are; all have equally many steps.

    Raises:
        DataError: no event to learn from.
        RecipeError: an objective that compares with negatives, without any, or weights of event types.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: Train,
        loss: Loss,
        seed: int,
        *,
        repeats: bool = False,
        history: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if loss in NEEDS_NEGATIVES and not settings.negatives:
            raise RecipeError(
                f"{loss} compares with negatives and there are none",
                where="train.negatives",
                remedy="set it to 1 or more, or choose another model.loss",
            )
        if settings.event_weights:
            raise RecipeError(
                "the model learns from events, which count alike",
                where="train.event_weights",
                remedy="choose a model that learns sequences or sets, such as sasrec, or remove the key",
            )
        self.dataset, self.settings, self.loss, self.seed = dataset, settings, loss, seed
        self.repeats, self.history, self.rank, self.world = repeats, history, rank, world
        part = dataset.train
        self.negatives = 0 if loss in POSITIVES_ALONE else settings.negatives
        self.logged = self.negatives == 0 and loss not in POSITIVES_ALONE
        learned = (np.asarray(part.label) > 0) | self.logged
        self.rows = np.flatnonzero(learned).astype(row_type(len(learned)))
        if not len(self.rows):
            raise DataError(
                "no event to learn from in the training part",
                where=str(dataset.path),
                remedy="check data.positive, data.where and the split",
            )
        self.draw = Draws(dataset, settings.negative_sampling)
        self.batch_size = settings.batch_size or fitting_batch_size(len(self.rows))
        self.before = histories_end(dataset)
        self.seen = SeenPairs(part.user, part.item) if self.negatives and not repeats else None

    @property
    def steps(self) -> int:
        """Batches of this worker in an epoch."""
        return -(-self._share // self.batch_size)

    @property
    def _share(self) -> int:
        return -(-len(self.rows) // self.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        mine = np.resize(order, self._share * self.world)[self.rank :: self.world]
        size = self.batch_size
        for step in range(start, self.steps):
            random = np.random.default_rng([self.seed, epoch, self.rank, step])
            # Within a batch order means nothing, and look-ups in order are kinder to the memory.
            yield self._batch(np.sort(mine[step * size : (step + 1) * size]), random)

    def _batch(self, rows: Array, random: np.random.Generator) -> Batch:
        part = self.dataset.train
        user = part.user[rows]
        items = self._candidates(user, part.item[rows], random)
        label = np.zeros(items.shape, np.float32)
        label[:, 0] = 1.0 if not self.logged else (part.value if self.loss == "mse" else part.label)[rows]
        # Without a history the context still asks for the moment of the last event.
        recent = self._recent(user, rows, self.dataset.schema.history if self.history else 1)
        if not self.history:
            recent = (np.zeros_like(recent[0]), np.zeros_like(recent[1]), recent[2])
        shown = self._hide(user, random)
        if self.loss not in POSITIVES_ALONE:  # a row that stands for many items has no log Q
            items = self._hide(items, random)
        return batch_of(self.dataset, shown, recent, part.time[rows], items, label, with_gaps=False)

    def _recent(self, user: Array, rows: Array, length: int) -> tuple[Array, Array, Array]:
        """What the user did before each of these events; where there is no order, at other times."""
        start, end = self.dataset.train.indptr[user], self.dataset.train.indptr[user + 1]
        if self.dataset.schema.ordered:
            return self.dataset.history(np.stack([start, self.before[rows]], 1), length=length)
        # A window of one event more that holds this one, which is then left out.
        last = np.minimum(np.maximum(rows + 1 + length // 2, start + length + 1), end)
        events = self.dataset.history(np.stack([start, last], 1), length=length + 1)
        own = (rows - (last - length - 1))[:, None]
        others = np.arange(length) + (np.arange(length) >= own)
        item, event, time = (np.take_along_axis(column, others, 1) for column in events)
        return item, event, time

    def _candidates(self, user: Array, positive: Array, random: np.random.Generator) -> Array:
        if not self.negatives:
            return positive[:, None]
        drawn = self.draw((len(user), self.negatives), random)
        row, column = np.nonzero(self._taken(user[:, None], positive[:, None], drawn))
        for _ in range(REDRAWS):
            if not len(row):
                break
            drawn[row, column] = self.draw(len(row), random)
            again = self._taken(user[row], positive[row], drawn[row, column])
            row, column = row[again], column[again]
        return np.concatenate([positive[:, None], drawn], 1)

    def _taken(self, user: Array, positive: Array, drawn: Array) -> Array:
        return drawn == positive if self.seen is None else self.seen(user, drawn)

    def _hide(self, rows: Array, random: np.random.Generator) -> Array:
        """The rows, some of them replaced by row 0 at random, so that it learns to stand for unknown ids."""
        rate = self.settings.id_dropout
        return np.where(random.random(rows.shape, np.float32) < rate, 0, rows) if rate else rows
