"""Splits: which event trains, which validates, which tests. One bucket of users at a time.

    leave_last  the last positive event of a user tests, the one before it validates; events
                between and after them go with them, for the histories. Users with fewer than
                three positive events train.
    leave_random  one positive event of a user, drawn by a hash of its row's number in the input,
                tests, and another validates; all others train. Users as above.
    time        events from a moment on test, those of the stretch before it validate.
    user        users drawn by a hash of their id are held out: their last positive event tests. `fold`
                says which ones: fold 1 is the next share `test` of the users, and so on.
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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.data.dataset import observed_labels
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
    (number in the input), test (1 in given test files), event, value, item.

    Attributes:
        split: the recipe's section.
        seed: the recipe's.
        positive: for each event type whether it is to be predicted; row 0 is padding.
        above: events with a greater value are to be predicted; None: the value does not matter.
        clips: bounds, one after another, that values are moved into before they are compared.
        cuts: of a split by time, the first moments of validation and test in microseconds.
    """

    split: Split
    seed: int
    positive: tuple[bool, ...]
    above: float | None = None
    clips: tuple[tuple[float, float], ...] = ()
    cuts: tuple[int, int] = (0, 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the rows' columns that the method looks at."""
        own = {"time": "time", "random": "row", "kfold": "row", "leave_random": "row", "given": "test"}
        more = [own.get(self.split.method, ""), "" if self.above is None else "value"]
        return ("user", "item", "event", *filter(None, more))

    def assign(self, rows: dict[str, Array], hashes: Array) -> tuple[Array, Array, int]:
        """Part (N,), label (N,) float32 and the number of repeats that `new_items_only` does not test.

        Args:
            rows: of the bucket.
            hashes: (users,) of the bucket's user ids.
        """
        value = None if self.above is None else clipped(rows["value"], self.clips)
        label = observed_labels(rows["event"], value, self.positive, self.above)
        method = self.split.method
        if method == "time":
            part = np.digitize(rows["time"], np.array(self.cuts))
        elif method in ("random", "kfold"):
            part = _random(rows["row"], self.split, self.seed)
        elif method == "user":
            part, label = self._held_out(rows["user"], label, hashes)
        elif method == "given":
            part = _given(rows, label, self.split)
        elif method == "leave_random":
            part = _leave_random(rows, label, self.split, self.seed)
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
        """(users,) numbers in [0, 1) of which the least are held out."""
        drawn: Array = (uniform(hashes, self.seed) - self.split.fold * self.split.test) % 1
        return drawn

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


def clipped(values: Array, clips: Sequence[tuple[float, float]]) -> Array:
    """Values (N,) float32, moved into bounds (low, high), one pair after another."""
    for low, high in clips:
        values = np.clip(values, low, high).astype(np.float32)
    return values


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


def _leave_random(rows: dict[str, Array], label: Array, split: Split, seed: int) -> Array:
    """As leave_last on the positive events in the order of the hash that sorts events without an order."""
    positive = np.flatnonzero(label > 0)
    user = rows["user"][positive]
    drawn = positive[np.lexsort((uniform(rows["row"][positive], seed), user))]
    part = np.full(len(label), TRAIN)
    part[drawn] = _leave_last(user, label[drawn], split)  # sorted by user, so theirs are those of `drawn`
    return part


def _given(rows: dict[str, Array], label: Array, split: Split) -> Array:
    test = rows["test"] > 0
    label = np.where(test, 0, label)
    left, total = positives_from_here(rows["user"], label)
    last = (left - (label > 0) < 1) & (total > 1) & (split.valid > 0)
    return np.where(test, TEST, np.where(last, VALID, TRAIN))


def time_cuts(split: Split, column: Column, rows: int) -> tuple[int, int]:
    """First moments of validation and test, microseconds, in a split by time.

    Of the moments that events have, those are chosen that give the parts nearest to what is asked for.

    Args:
        split: the recipe's section; a length in days comes before a share of the rows.
        column: times of the rows that are kept.
        rows: how many they are, at least 1.
    """
    (end,) = column.ranked([rows - 1])
    tested = round(rows * split.test)
    if split.test_days:
        test, validated = end + 1 - round(split.test_days * _DAY), round(rows * split.valid)
    else:
        test = _cut(column, rows, end + 1, tested)
        validated = round(rows * (split.valid + split.test)) - tested
    if split.valid_days:
        return test - round(split.valid_days * _DAY), test
    return _cut(column, rows, test, validated, trains=True), test


def _cut(column: Column, rows: int, until: int, asked: int, *, trains: bool = False) -> int:
    """The moment from which on, before `until`, the number of rows is nearest to `asked`.

    It is at least one where any is asked for. `until` if none is, or, where `trains`, if nothing would
    be left before.
    """
    earlier = rows - column.count_from(until)
    if min(asked, earlier) == 0:
        return until
    (moment,) = column.ranked([max(earlier - asked, 0)])
    before = rows - column.count_from(moment)
    if earlier - before == asked:
        return int(moment)
    after = earlier - (rows - column.count_from(moment + 1))  # rows from the next moment on
    if after and (before == 0 or asked - after < earlier - before - asked):
        return int(column.ranked([earlier - after])[0])
    return until if trains and before == 0 else int(moment)


def _random(row: Array, split: Split, seed: int) -> Array:
    draw = uniform(row, seed)
    if split.method == "random":
        return np.where(draw < split.test, TEST, np.where(draw < split.test + split.valid, VALID, TRAIN))
    fold = (draw * split.folds).astype(np.int64)
    tests = (fold == split.fold % split.folds) & (split.test > 0)
    validates = (fold == (split.fold + 1) % split.folds) & (split.folds > 2) & (split.valid > 0)
    return np.where(tests, TEST, np.where(validates, VALID, TRAIN))


def uniform(keys: Array, seed: int) -> Array:
    """(N,) numbers in [0, 1) that depend on key (an integer) and seed alone."""
    start = mix(np.array([seed & (2**64 - 1)], np.uint64))
    return (mix(keys.astype(np.uint64) ^ start) >> np.uint64(11)) / 2.0**53


def _hide_repeats(rows: dict[str, Array], part: Array, label: Array) -> int:
    """Set the label to 0 of what users do after training with an item they trained on; returns how many."""
    pair = rows["user"].astype(np.int64) << 32 | rows["item"].astype(np.int64)
    repeated = np.isin(pair, np.unique(pair[part == TRAIN])) & (part != TRAIN)
    label[repeated] = 0
    return int(repeated.sum())
