"""Batches for models that learn from sets: a row is a user with the items that they met.

The set is what such a model is shown when it serves (`Model.reads` = "all"): each item of the last
WHOLE_PAST events once. The targets are those of them that had an event to predict; they are in the set, too,
and a model that must not see a target when it predicts it leaves it out itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from app.data.dataset import Array, Dataset
from app.errors import DataError, RecipeError
from app.events import WHOLE_PAST
from app.models.base import Loss, Sequences
from app.models.batch import history_of, recent_of
from app.recipe import Train
from app.training.batches.negatives import Draws
from app.training.batches.sequences import WITHOUT_NEGATIVES, plan
from app.training.batches.weights import learned_rows, weights_of_types
from app.training.defaults import fitting_batch_size


class SetBatches:
    """Batches of one worker's share of the users that have something to predict.

    A batch has about `train.batch_size` positions, of sets of similar size, and draws its negatives once for
    all of its targets. Users are hidden at the rate of train.id_dropout.

    Args:
        rank, world: this worker and how many there are; all have equally many steps.

    Raises:
        DataError: no event to learn from.
        RecipeError: an objective that compares with negatives, without any.
    """

    def __init__(
        self, dataset: Dataset, settings: Train, loss: Loss, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        if loss not in WITHOUT_NEGATIVES and not settings.negatives:
            raise RecipeError(
                f"{loss} compares with negatives and there are none",
                where="train.negatives",
                remedy="set it to 1 or more, or choose model.loss = 'softmax'",
            )
        self.dataset, self.settings, self.seed = dataset, settings, seed
        self.rank, self.world = rank, world
        part = dataset.train
        self.end = np.asarray(part.indptr)[1:]
        self.start = np.maximum(np.asarray(part.indptr)[:-1], self.end - WHOLE_PAST)
        self.weights = weights_of_types(dataset, settings.event_weights)
        self.learned = learned_rows(dataset, self.weights)
        positives = np.append(0, np.cumsum(self.learned))
        learned = positives[self.end] > positives[self.start]
        learned[0] = False  # the rows of user 0 are those of many people
        self.users = np.flatnonzero(learned)
        if not len(self.users):
            raise DataError(
                "no user to learn from in the training part",
                where=str(dataset.path),
                remedy="check data.positive, data.where and the split",
            )
        size = (self.end - self.start)[self.users]
        self.bucket, self.firsts = plan(size, settings.batch_size or fitting_batch_size(int(size.sum())))
        self.negatives = 0 if loss in WITHOUT_NEGATIVES else settings.negatives
        self.draw = Draws(dataset, settings.negative_sampling)

    @property
    def steps(self) -> int:
        """Batches of this worker in an epoch."""
        return -(-(len(self.firsts) - 1) // self.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Sequences]:
        """The batches of an epoch from step `start` on."""
        random = np.random.default_rng([self.seed, epoch])
        order = self.users[np.lexsort((random.random(len(self.users)), self.bucket))]
        numbers = random.permutation(len(self.firsts) - 1)
        mine = np.resize(numbers, self.steps * self.world)[self.rank :: self.world]
        for step in range(start, self.steps):
            first, last = self.firsts[mine[step]], self.firsts[mine[step] + 1]
            yield self._batch(order[first:last], np.random.default_rng([self.seed, epoch, self.rank, step]))

    def _batch(self, users: Array, random: np.random.Generator) -> Sequences:
        owner, target, weight = self._targets(users)
        negatives = self.draw(self.negatives, random)
        hidden = random.random(len(users), np.float32) < self.settings.id_dropout
        return Sequences(
            user=torch.from_numpy(np.where(hidden, 0, users)),
            history=history_of(recent_of(self.dataset, users, (self.dataset.train,), "all")),
            owner=torch.from_numpy(owner),
            target=torch.from_numpy(target),
            weight=torch.from_numpy(weight),
            negatives=torch.from_numpy(negatives.astype(np.int64)),
            log_q=torch.from_numpy(self.draw.log_q[negatives]),
        )

    def _targets(self, users: Array) -> tuple[Array, Array, Array]:
        """For each distinct positive item of each user's set: which of the users, the item and its weight.

        An item with events of several types counts as much as the weightiest of them.
        """
        part, items = self.dataset.train, self.dataset.schema.items
        start, count = self.start[users], (self.end - self.start)[users]
        owner = np.repeat(np.arange(len(users)), count)
        rows = np.arange(len(owner)) + np.repeat(start - np.cumsum(count) + count, count)
        chosen = self.learned[rows]
        rows = rows[chosen]
        pairs, pair = np.unique(owner[chosen] * items + part.item[rows], return_inverse=True)
        weight = np.zeros(len(pairs), np.float32)
        np.maximum.at(weight, pair, self.weights[part.event[rows]])
        return pairs // items, pairs % items, weight
