"""Negatives: how they are drawn, and which pairs of a user and an item are none."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np

from app.data.dataset import Array, Dataset

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


class Draws:
    """Draws items with a training event at random: all alike, or by their number of positive ones.

    Args:
        sampling: as train.negative_sampling.
    """

    def __init__(self, dataset: Dataset, sampling: Literal["uniform", "popularity"]) -> None:
        self.sampling, self.items = sampling, dataset.schema.items
        self.known = np.flatnonzero(dataset.trained["item"]).astype(np.int32)
        part = dataset.train
        self.positives = np.asarray(part.item)[np.asarray(part.label) > 0]

    def __call__(self, shape: int | tuple[int, ...], random: np.random.Generator) -> Array:
        """Rows of items, >= 1, in an array of this shape."""
        if self.sampling == "uniform":
            return self.known[random.integers(0, len(self.known), shape, dtype=np.int32)]
        return self.positives[random.integers(0, len(self.positives), shape)]

    @cached_property
    def log_q(self) -> Array:
        """(items,) float32: log of the probability that a draw is this item; -inf where it is 0."""
        drawn = self.known if self.sampling == "uniform" else self.positives
        counts = np.bincount(drawn, minlength=self.items).astype(np.float64)
        with np.errstate(divide="ignore"):
            log_q: Array = np.log(counts / counts.sum()).astype(np.float32)
        return log_q
