"""Splits: which event trains, which validates, which tests. One bucket of users at a time.

    leave_last  the last positive event of a user tests, the one before it validates; events
                between and after them go with them, for the histories. Users with fewer than
                three positive events train.
    time        events from a moment on test, those of the stretch before it validate.
    user        users drawn by a hash of their id are held out: their last positive event tests.
                What they did before is in the validation part with label 0: history that nothing
                is fitted to. Of the users that validate, the last positive event does and the
                others train.
    random      by a hash of the row's number in the input, so any number of cores agrees.
    kfold       likewise, the fold `fold` tests and the next one validates.
    given       test files test; the last positive training event of a user with two or more
                validates.

A share `valid` or `test` of 0 leaves that part out: what it would hold trains, and given test files
are not read. (The history of held-out users stays in the validation part.) With `new_items_only`,
events after training on an item that the user has in training have label 0: they are history, and
not tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.data.prepare.selection.statistics import Column
from app.data.values.text import mix
from app.recipe import Split

Array = npt.NDArray[Any]
TRAIN, VALID, TEST = range(3)
_DAY = 86_400_000_000


@dataclass(frozen=True)
class Splitter:
    """The split of a recipe, for one bucket of users at a time.

    Rows are arrays (N,) by name, sorted by user and time: user (position in the bucket), time, row
    (number in the input), test (1 in given test files), event, item.

    Attributes:
        split: the recipe's section.
        seed: the recipe's.
        positive: for each event type whether it is to be predicted; row 0 is padding.
        cuts: of a split by time, the first moments of validation and test in microseconds.
    """

    split: Split
    seed: int
    positive: tuple[bool, ...]
    cuts: tuple[int, int] = (0, 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the rows' columns that the method looks at."""
        own = {"time": ("time",), "random": ("row",), "kfold": ("row",), "given": ("test",)}
        return ("user", "item", "event", *own.get(self.split.method, ()))

    def assign(self, rows: dict[str, Array], hashes: Array) -> tuple[Array, Array, int]:
        """Part (N,), label (N,) float32 and the number of repeats that `new_items_only` does not test.

        Args:
            rows: of the bucket.
            hashes: (users,) of the bucket's user ids.
        """
        label = np.array(self.positive, np.float32)[rows["event"]]
        method = self.split.method
        if method == "time":
            part = np.digitize(rows["time"], np.array(self.cuts))
        elif method in ("random", "kfold"):
            part = _random(rows["row"], self.split, self.seed)
        elif method == "user":
            part, label = self._held_out(rows["user"], label, hashes)
        elif method == "given":
            part = _given(rows, label, self.split)
        else:
            part = _leave_last(rows["user"], label, self.split)
        repeated = _hide_repeats(rows, part, label) if self.split.new_items_only else 0
        return part.astype(np.uint8), label, repeated

    def counted(self, rows: dict[str, Array], hashes: Array) -> tuple[Array, Array]:
        """Rows (N,) bool that count for a user, and those that count for an item, in a k-core.

        Training rows count. Users that are held out as a whole have none: for themselves, and for
        no item, their history counts, which is known before the event that is tested.
        """
        part = self.assign(rows, hashes)[0]
        trains = part == TRAIN
        if self.split.method != "user":
            return trains, trains
        return trains | (part == VALID) & self._tests(hashes)[rows["user"]], trains

    def _draw(self, hashes: Array) -> Array:
        return uniform(hashes, self.seed)

    def _tests(self, hashes: Array) -> Array:
        """(users,) bool: users that are held out to test."""
        return self._draw(hashes) < self.split.test

    def _held_out(self, user: Array, label: Array, hashes: Array) -> tuple[Array, Array]:
        draw, tests = self._draw(hashes)[user], self._tests(hashes)[user]
        validates = ~tests & (draw < self.split.test + self.split.valid)
        target = positives_from_here(user, label)[0] - (label > 0) < 1  # the last positive event and on
        part = np.where(validates & target, VALID, TRAIN)
        part = np.where(tests, np.where(target, TEST, VALID), part)
        return part, np.where(tests & ~target, np.float32(0), label)


def positives_from_here(user: Array, label: Array) -> tuple[Array, Array]:
    """Positive events (N,) of the row's user from this row on, itself included, and (N,) in all.

    Args:
        user: (N,) ascending.
        label: (N,).
    """
    counts = np.bincount(user)
    running = np.zeros(len(user) + 1, np.int64)
    np.cumsum(label > 0, out=running[1:])
    ends = np.cumsum(counts)  # first row after each user
    after = running[ends]
    # Repeating what a user has is several times as quick as looking it up for every row.
    left: Array = np.repeat(after, counts) - running[:-1]
    return left, np.repeat(after - running[ends - counts], counts)


def _leave_last(user: Array, label: Array, split: Split) -> Array:
    left, total = positives_from_here(user, label)
    held_out = [part for part, share in ((VALID, split.valid), (TEST, split.test)) if share > 0]
    # A row belongs to the last target at or before it; before all targets it trains.
    reached = np.clip(len(held_out) - left + (label > 0), 0, len(held_out))
    return np.where(total > len(held_out), np.array([TRAIN, *held_out])[reached], TRAIN)


def _given(rows: dict[str, Array], label: Array, split: Split) -> Array:
    test = rows["test"] > 0
    label = np.where(test, 0, label)
    left, total = positives_from_here(rows["user"], label)
    last = (left - (label > 0) < 1) & (total > 1) & (split.valid > 0)
    return np.where(test, TEST, np.where(last, VALID, TRAIN))


def time_cuts(split: Split, column: Column, rows: int) -> tuple[int, int]:
    """First moments of validation and test, microseconds, in a split by time.

    Args:
        split: the recipe's section; a length in days comes before a share of the rows.
        column: times of the rows that are kept.
        rows: how many they are, at least 1.
    """
    last = 0 if split.test_days else round(rows * split.test)
    after_train = 0 if split.test_days or split.valid_days else round(rows * (split.valid + split.test))
    end, test, valid = column.ranked([rows - 1, rows - max(last, 1), rows - max(after_train, 1)])
    test = test if last else end + 1
    if split.test_days:
        test = end + 1 - round(split.test_days * _DAY)
    if split.valid_days:
        return test - round(split.valid_days * _DAY), test
    if split.test_days:
        before = rows - column.count_from(test)
        after_train = min(round(rows * split.valid), before)
        (valid,) = column.ranked([before - after_train]) if after_train else (test,)
    return (min(valid, test) if after_train else test), test


def _random(row: Array, split: Split, seed: int) -> Array:
    draw = uniform(row.astype(np.uint64), seed)
    if split.method == "random":
        return np.where(draw < split.test, TEST, np.where(draw < split.test + split.valid, VALID, TRAIN))
    fold = (draw * split.folds).astype(np.int64)
    tests = (fold == split.fold % split.folds) & (split.test > 0)
    validates = (fold == (split.fold + 1) % split.folds) & (split.folds > 2) & (split.valid > 0)
    return np.where(tests, TEST, np.where(validates, VALID, TRAIN))


def uniform(keys: Array, seed: int) -> Array:
    """(N,) numbers in [0, 1) that depend on key and seed alone."""
    start = mix(np.array([seed & (2**64 - 1)], np.uint64))
    return (mix(keys ^ start) >> np.uint64(11)) / 2.0**53


def _hide_repeats(rows: dict[str, Array], part: Array, label: Array) -> int:
    """Set the label to 0 of what users do after training with an item they trained on; returns how many."""
    pair = rows["user"].astype(np.int64) << 32 | rows["item"].astype(np.int64)
    repeated = np.isin(pair, np.unique(pair[part == TRAIN])) & (part != TRAIN)
    label[repeated] = 0
    return int(repeated.sum())
