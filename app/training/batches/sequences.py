"""Batches for models that learn from sequences: a row is a user's sequence, learned at every event at once.

A sequence longer than a history comes in windows. The first is learned everywhere; each later one overlaps
half of the one before and is learned in its new half alone, because the states there have at least half a
history behind them, as they have when served. Every event to predict is learned exactly once an epoch: in
the window that holds the last event before its moment in the part that is learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from app.data.dataset import Array, Dataset
from app.errors import RecipeError
from app.features.context import gaps
from app.models.base import History, Loss, Sequences
from app.recipe import Train
from app.training.batches.moments import histories_end, row_type
from app.training.batches.negatives import Draws
from app.training.batches.weights import learned_rows, weights_of_types
from app.training.defaults import fitting_batch_size

SLACK = 1.1  # sequences of a batch differ in length by this factor at most, where there are enough of them
WITHOUT_NEGATIVES = ("softmax",)  # objectives over the whole catalogue


@dataclass(frozen=True)
class Windows:
    """W windows of users' sequences: the events [start, end), after which the targets are predicted.

    Targets of window w are those from first[w] to first[w + 1]. A user's first events are predicted by a
    window without an event, if nothing else is.
    """

    start: Array  # (W,) rows of events
    end: Array  # (W,)
    first: Array  # (W + 1,)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def length(self) -> Array:
        """(W,) columns of each: its events, and one of padding in front, the state of an empty history."""
        return self.end - self.start + 1


class SequenceBatches:
    """Batches of one worker's share of the users' sequences.

    A batch has about `train.batch_size` positions, of sequences of similar length. The states of one more
    column, of padding in front, predict the first event of each user. Negatives are drawn once a batch, for
    all of its targets. Users are hidden at the rate of train.id_dropout; items are not: a hidden event would
    be a hole in the sequence, and the unknown item gets the mean of all (`average_unknown`).

    Args:
        rank, world: this worker and how many there are; all have equally many steps.

    Raises:
        DataError: no event to learn from.
        RecipeError: events without an order, or an objective that compares with negatives, without any.
    """

    def __init__(
        self, dataset: Dataset, settings: Train, loss: Loss, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        _refuse(dataset, settings, loss)
        self.dataset, self.settings, self.seed = dataset, settings, seed
        self.rank, self.world = rank, world
        part = dataset.train
        self.weights = weights_of_types(dataset, settings.event_weights)
        self.rows = np.flatnonzero(learned_rows(dataset, self.weights)).astype(row_type(len(part)))
        self.before = histories_end(dataset)[self.rows]
        start = np.asarray(part.indptr)[np.asarray(part.user)[self.rows]].astype(self.rows.dtype)
        self.windows = windows_of(start, self.before, dataset.schema.history)
        self.negatives = 0 if loss in WITHOUT_NEGATIVES else settings.negatives
        self.draw = Draws(dataset, settings.negative_sampling)
        positions = settings.batch_size or fitting_batch_size(int(self.windows.length.sum()))
        self.bucket, self.firsts = plan(self.windows.length, positions)

    @property
    def steps(self) -> int:
        """Batches of this worker in an epoch."""
        return -(-(len(self.firsts) - 1) // self.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Sequences]:
        """The batches of an epoch from step `start` on."""
        random = np.random.default_rng([self.seed, epoch])
        order = np.lexsort((random.random(len(self.windows)), self.bucket))
        numbers = random.permutation(len(self.firsts) - 1)
        mine = np.resize(numbers, self.steps * self.world)[self.rank :: self.world]
        for step in range(start, self.steps):
            number = mine[step]
            # Within a batch order means nothing, and look-ups in order are kinder to the memory.
            chosen = np.sort(order[self.firsts[number] : self.firsts[number + 1]])
            yield self._batch(chosen, np.random.default_rng([self.seed, epoch, self.rank, step]))

    def _batch(self, chosen: Array, random: np.random.Generator) -> Sequences:
        windows, part = self.windows, self.dataset.train
        start, end = windows.start[chosen], windows.end[chosen]
        columns = int((end - start).max()) + 1
        item, event, time = self.dataset.history(np.stack([start, end], 1), length=columns)
        counts = windows.first[chosen + 1] - windows.first[chosen]
        sequence = np.repeat(np.arange(len(chosen)), counts)
        target = np.arange(len(sequence)) + np.repeat(
            windows.first[chosen] - np.cumsum(counts) + counts, counts
        )
        rows = self.rows[target]
        # The last event before the target, counted from the end of its row; before the first event, padding.
        owner = (sequence + 1) * columns - 1 - (end[sequence] - self.before[target])
        negatives = self.draw(self.negatives, random)
        user = part.user[self.rows[windows.first[chosen]]]
        hidden = random.random(len(user), np.float32) < self.settings.id_dropout
        return Sequences(
            user=_int64(np.where(hidden, 0, user)),
            history=History(
                item=_int64(item),
                event=_int64(event),
                age=torch.zeros((len(item), 0)),  # it would be another one at each position
                gap=torch.from_numpy(gaps(time)),
            ),
            owner=_int64(owner),
            target=_int64(part.item[rows]),
            weight=torch.from_numpy(self.weights[part.event[rows]]),
            negatives=_int64(negatives),
            log_q=torch.from_numpy(self.draw.log_q[negatives]),
        )


def windows_of(start: Array, before: Array, length: int) -> Windows:
    """The windows of all users' sequences.

    Args:
        start: (T,) for each event to predict, in the order of users and time, the first row of its user.
        before: (T,) the row that its history ends before.
        length: most events of a window.
    """
    half = max(1, length // 2)
    # The number of the window in whose learned part the last event before the target lies: the first has
    # `length` of these events, each later one `half`.
    number = np.maximum(0, before - start - length + half - 1) // half
    new = np.ones(len(start), bool)
    new[1:] = (start[1:] != start[:-1]) | (number[1:] != number[:-1])
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(start)) - 1
    begin = start[first] + half * number[first].astype(start.dtype)
    return Windows(begin, before[last], np.append(first, len(start)))


def plan(length: Array, positions: int) -> tuple[Array, Array]:
    """Divide sequences into batches of similar length.

    Sequences of a bucket differ in length by the factor SLACK at most, or fill a single batch; they are
    shuffled within it, and it is cut into batches of about `positions` columns in all. So that all epochs
    have equally many batches, buckets do not depend on the shuffle.

    Args:
        length: (W,) columns of each sequence.

    Returns:
        bucket (W,) of each sequence, and (batches + 1,): batches begin there among the sequences in the
        order of their buckets.
    """
    order = np.argsort(length, kind="stable")
    ordered = length[order]
    bucket, firsts, begin = np.empty(len(length), np.int32), [0], 0
    while begin < len(ordered):
        longest = max(int(ordered[begin] * SLACK), int(ordered[begin]))
        end = int(np.searchsorted(ordered, longest, "right"))
        # Too few for a batch: as many more as fit into one, each counted as long as the longest.
        filled = np.arange(1, min(len(ordered) - begin, positions) + 1) * ordered[begin : begin + positions]
        end = max(end, begin + int(np.searchsorted(filled, positions, "right")), begin + 1)
        bucket[order[begin:end]] = len(firsts)
        batches = -(-(end - begin) // max(1, positions // int(ordered[end - 1])))
        firsts += (begin + np.arange(1, batches + 1) * (end - begin) // batches).tolist()
        begin = end
    return bucket, np.array(firsts)


def _int64(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _refuse(dataset: Dataset, settings: Train, loss: Loss) -> None:
    if not dataset.schema.ordered:
        raise RecipeError(
            "the model learns from sequences, and the events of this log have no order",
            where="model.name",
            remedy="choose item_knn or mult_vae, or name the time in data.timestamp (or set data.row_order)",
        )
    if loss not in WITHOUT_NEGATIVES and not settings.negatives:
        raise RecipeError(
            f"{loss} compares with negatives and there are none",
            where="train.negatives",
            remedy="set it to 1 or more, or choose model.loss = 'softmax'",
        )
