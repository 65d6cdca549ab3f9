"""Makes shuffled batches of the memory-mapped training events.

Everything is vectorised, and everything random is a function of (seed, epoch, worker, step):
a resumed epoch goes on with exactly the batches that it would have had.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from app.data.dataset import Array, Dataset
from app.errors import DataError, RecipeError
from app.models.base import Batch, Loss
from app.models.batch import batch_of
from app.recipe import Train

PREFETCH = 4  # batches that wait for the training loop
REDRAWS = 3
NEEDS_NEGATIVES = ("bpr", "cross_entropy")
BITS_PER_EVENT = 16


class SeenPairs:
    """The (user, item) pairs of the training part in two bytes an event: a Bloom filter of one hash.

    It never misses a pair; another pair counts as seen with probability 1/16 or less, which only
    costs a redraw (Bloom 1970, "Space/time trade-offs in hash coding with allowable errors").
    """

    def __init__(self, user: Array, item: Array) -> None:
        self.mask = (1 << max(10, (BITS_PER_EVENT * len(user)).bit_length())) - 1
        slot = self._slot(np.asarray(user), np.asarray(item))
        self.bits = np.zeros((self.mask + 1) // 8, np.uint8)
        np.bitwise_or.at(self.bits, slot >> 3, np.left_shift(1, slot & 7).astype(np.uint8))

    def __call__(self, user: Array, item: Array) -> Array:
        """Whether each pair was seen; shapes broadcast."""
        slot = self._slot(user, item)
        bit: Array = (self.bits[slot >> 3] >> (slot & 7).astype(np.uint8)) & 1
        return bit.astype(bool)

    def _slot(self, user: Array, item: Array) -> Array:
        # Odd multipliers mix the pair; the upper bits are the well mixed ones.
        mixed = user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ item.astype(np.uint64)) * np.uint64(0xD1B54A32D192ED03)
        return ((mixed >> np.uint64(20)) & np.uint64(self.mask)).astype(np.int64)


def row_type(rows: int) -> type[np.int32] | type[np.int64]:
    """The narrowest type that numbers so many rows; arrays of them live as long as the training."""
    return np.int32 if rows <= 1 << 31 else np.int64


def first_of_moment(user: Array, time: Array) -> Array:
    """(N,) for each event the first row of its user with the same time.

    Events of one moment, such as the lines of an invoice, do not come before each other.
    """
    new = np.ones(len(user), bool)
    new[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    return np.maximum.accumulate(np.where(new, np.arange(len(user), dtype=row_type(len(user))), 0))


class Sampler:
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
        RecipeError: an objective that compares with negatives, without any.
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
        self.dataset, self.settings, self.loss, self.seed = dataset, settings, loss, seed
        self.repeats, self.history, self.rank, self.world = repeats, history, rank, world
        part = dataset.train
        # The softmax has the other rows' positives for negatives.
        self.negatives = 0 if loss == "sampled_softmax" else settings.negatives
        self.logged = self.negatives == 0 and loss != "sampled_softmax"
        learned = (np.asarray(part.label) > 0) | self.logged
        self.rows = np.flatnonzero(learned).astype(row_type(len(learned)))
        if not len(self.rows):
            raise DataError(
                "no event to learn from in the training part",
                where=str(dataset.path),
                remedy="check data.positive, data.where and the split",
            )
        self.positives = np.asarray(part.item)[np.asarray(part.label) > 0]
        self.before = first_of_moment(np.asarray(part.user), np.asarray(part.time))
        self.seen = SeenPairs(part.user, part.item) if self.negatives and not repeats else None

    @property
    def steps(self) -> int:
        """Batches of this worker in an epoch."""
        return -(-self._share // self.settings.batch_size)

    @property
    def candidates(self) -> int:
        """Number of candidates C of a row."""
        return 1 + self.negatives

    @property
    def _share(self) -> int:
        return -(-len(self.rows) // self.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        mine = np.resize(order, self._share * self.world)[self.rank :: self.world]
        size = self.settings.batch_size
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
        ends = np.stack([part.indptr[user], self.before[rows]], 1)
        # Without a history the context still asks for the moment of the last event.
        recent = self.dataset.history(ends, length=None if self.history else 1)
        if not self.history:
            recent = (np.zeros_like(recent[0]), np.zeros_like(recent[1]), recent[2])
        shown = self._hide(user, random)
        if self.loss != "sampled_softmax":  # a row that stands for many items has no log Q
            items = self._hide(items, random)
        return batch_of(self.dataset, shown, recent, part.time[rows], items, label)

    def _candidates(self, user: Array, positive: Array, random: np.random.Generator) -> Array:
        if not self.negatives:
            return positive[:, None]
        drawn = self._draw((len(user), self.negatives), random)
        row, column = np.nonzero(self._taken(user[:, None], positive[:, None], drawn))
        for _ in range(REDRAWS):
            if not len(row):
                break
            drawn[row, column] = self._draw(len(row), random)
            again = self._taken(user[row], positive[row], drawn[row, column])
            row, column = row[again], column[again]
        return np.concatenate([positive[:, None], drawn], 1)

    def _taken(self, user: Array, positive: Array, drawn: Array) -> Array:
        return drawn == positive if self.seen is None else self.seen(user, drawn)

    def _draw(self, shape: int | tuple[int, int], random: np.random.Generator) -> Array:
        if self.settings.negative_sampling == "uniform":
            return random.integers(1, self.dataset.schema.items, shape, dtype=np.int32)
        return self.positives[random.integers(0, len(self.positives), shape)]

    def _hide(self, rows: Array, random: np.random.Generator) -> Array:
        """The rows, some of them replaced by row 0 at random, so that it learns to stand for unknown ids."""
        rate = self.settings.id_dropout
        return np.where(random.random(rows.shape, np.float32) < rate, 0, rows) if rate else rows


def prefetch(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, up to PREFETCH of them ahead, from a thread of its own."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(content: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(content, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (content := ready.get()) is not None:
            if isinstance(content, BaseException):
                raise content
            yield content
    finally:
        stop.set()
        thread.join()
