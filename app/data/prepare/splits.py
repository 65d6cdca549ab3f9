"""Splits: which event trains, which validates, which tests. One bucket of users at a time.

    leave_last  the last positive event of a user tests, the one before it validates; events
                between and after them go with them, for the histories. Users with fewer than
                three positive events train.
    time        events from a moment on test, those of the stretch before it validate.
    user        held-out users: their last positive event tests. What they did before is in
                the validation part with label 0: history that nothing is fitted to. Of the
                users that validate, the last positive event does and the others train.
    random      by a hash of the row's place in the input, so any number of cores agrees.
    kfold       likewise, `fold` tests and the next fold validates.
    given       test files test; the last positive training event of a user with two or more
                validates.

A share `valid` or `test` of 0 leaves that part out. With `new_items_only`, events after training on an
item that the user has in training have label 0: they are history, and not tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from app.data.values.text import mix
from app.recipe import Split

Array = npt.NDArray[Any]
TRAIN, VALID, TEST = range(3)


def assign(
    rows: dict[str, Array], hashes: Array, split: Split, seed: int, cuts: tuple[int, int]
) -> tuple[Array, int]:
    """The part (N,) of each row, and how many repeats are not tested; sets labels to 0 to hide them.

    Args:
        rows: user (positions in the bucket), time, row, test, label, item; sorted by user and time.
        hashes: (users,) of the bucket's user ids.
        split: the recipe's.
        seed: the recipe's.
        cuts: of a split by time, the first moments of validation and test.
    """
    if split.method == "time":
        part = np.digitize(rows["time"], np.array(cuts))
    elif split.method in ("random", "kfold"):
        part = _random(rows["row"], split, seed)
    elif split.method == "user":
        part = _held_out(rows, hashes, split, seed)
    elif split.method == "given":
        part = _given(rows, split)
    else:
        part = _leave_last(rows, split)
    repeated = _hide_repeats(rows, part) if split.new_items_only else 0
    return part.astype(np.uint8), repeated


def positives_from_here(user: Array, label: Array) -> Array:
    """(N,) positive events of the row's user from this row on, itself included."""
    positive = (label > 0).astype(np.int64)
    before = np.cumsum(positive) - positive
    last = np.searchsorted(user, user, side="right") - 1
    return before[last] + positive[last] - before


def _leave_last(rows: dict[str, Array], split: Split) -> Array:
    left = positives_from_here(rows["user"], rows["label"])
    positive = rows["label"] > 0
    first = np.searchsorted(rows["user"], rows["user"], side="left")
    held = [p for p, share in ((VALID, split.valid), (TEST, split.test)) if share > 0]
    # A row belongs to the last target at or before it; before all targets it trains.
    reached = np.clip(len(held) - left + positive, 0, len(held))
    return np.where(left[first] > len(held), np.array([TRAIN, *held])[reached], TRAIN)


def _given(rows: dict[str, Array], split: Split) -> Array:
    test = rows["test"] > 0
    label = np.where(test, 0, rows["label"])
    left = positives_from_here(rows["user"], label)
    first = np.searchsorted(rows["user"], rows["user"], side="left")
    last = (left - (label > 0) < 1) & (left[first] > 1) & (split.valid > 0)
    return np.where(test, TEST, np.where(last, VALID, TRAIN))


def _held_out(rows: dict[str, Array], hashes: Array, split: Split, seed: int) -> Array:
    draw = uniform(hashes, seed)[rows["user"]]
    left = positives_from_here(rows["user"], rows["label"])
    target = left - (rows["label"] > 0) < 1  # the last positive event and what follows it
    tests, validates = draw < split.test, (draw >= split.test) & (draw < split.test + split.valid)
    rows["label"] = np.where(tests & ~target, 0, rows["label"])
    part = np.where(validates & target, VALID, TRAIN)
    return np.where(tests, np.where(target, TEST, VALID), part)


def _random(row: Array, split: Split, seed: int) -> Array:
    draw = uniform(row.astype(np.uint64), seed)
    if split.method == "random":
        return np.where(draw < split.test, TEST, np.where(draw < split.test + split.valid, VALID, TRAIN))
    fold = (draw * split.folds).astype(np.int64)
    tests = split.fold % split.folds
    validates = (split.fold + 1) % split.folds
    return np.where(fold == tests, TEST, np.where((fold == validates) & (split.folds > 2), VALID, TRAIN))


def uniform(keys: Array, seed: int) -> Array:
    """(N,) numbers in [0, 1) that depend on key and seed alone."""
    start = mix(np.array([seed & (2**64 - 1)], np.uint64))
    return (mix(keys ^ start) >> np.uint64(11)) / 2.0**53


def _hide_repeats(rows: dict[str, Array], part: Array) -> int:
    """Label 0 for what users do after training with an item that they have in training; returns how many.

    These events stay in their part as history.
    """
    pair = rows["user"].astype(np.int64) << 32 | rows["item"].astype(np.int64)
    repeated = np.isin(pair, np.unique(pair[part == TRAIN])) & (part != TRAIN)
    rows["label"] = np.where(repeated, 0, rows["label"])
    return int(repeated.sum())
