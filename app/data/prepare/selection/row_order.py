"""Whether rows that a recipe says to be in order are sorted by something else than time.

Where they are, "the last event of a user" is the one with the highest id or the lowest value, and a
test of it says nothing. The first rows of each file are looked at. The hypothesis is that a user's rows
could as well stand in any other order; two tests, which a file in order passes although its users have
habits, since they ask for more than half of all cases where chance allows less than one in 24:

    A user's rows are sorted by a column: by item id or value up or down, by another number down (what
    goes up may count time). By chance k different values are with probability 1/k!, so users with
    four or more take part. Items that nobody met before the user do not count: ids numbered by first
    appearance go up in any order.
    Six users who met the same two items met them in the same order, by chance 1 in 32: so are files
    sorted by a column that is not there. No user takes part in two pairs.

Cases are independent, so that by Chernoff's bound more than half of n are so by chance with probability
at most exp(-n KL(1/2 || chance)). Below 1e-6 the file is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from app.data.input.reading import pieces
from app.data.input.source import Split
from app.data.prepare.clean import Cleaned, clean
from app.data.prepare.plan import Plan
from app.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_ERROR = 1e-6  # probability at most that a file in any order is refused by one test
_LEAST = 1 / 24  # four different values in order
_TOGETHER = 6  # users of a pair of items
_ITEMS = 200  # the most frequent ones, whose pairs are compared
_USERS = 20_000  # at most, for the memory's sake


def refuse_sorted(splits: Sequence[Split], plan: Plan) -> None:
    """Refuse a log without times whose rows are said to be in order and are not.

    Raises:
        DataError: names the file, the column if there is one, the number of cases and the remedy.
    """
    if plan.data.timed or not plan.data.row_order:
        return
    for split in {split.source: split for split in reversed(splits) if not split.source.test}.values():
        cleaned = next((clean(piece, plan) for piece in pieces(split) if len(piece.rows)), None)
        if cleaned is not None and (what := _sorted_by(cleaned, plan)):
            raise DataError(
                f"{what}: the rows are not in the order in which things happened",
                where=split.source.name,
                remedy="drop data.row_order, or name a column that orders in data.timestamp",
            )


def _sorted_by(cleaned: Cleaned, plan: Plan) -> str:
    """What the rows are sorted by, as a sentence; empty where by nothing."""
    kept = np.flatnonzero(cleaned.reason == 0)
    user, item = cleaned.user[kept].astype(np.int64), cleaned.item[kept].astype(np.int64)
    for column, key, both in _keys(cleaned, plan):
        shown = ~np.isnan(key[kept])
        if column == plan.data.item:
            shown &= _met_before(user, item)
        for direction, sign in (("descending", -1), ("ascending", 1))[: 1 + both]:
            alike, users = _sorted_users(user[shown], sign * key[kept][shown])
            if _is_no_chance(alike, users, _LEAST):
                return f"{alike:,} of {users:,} users have their rows in {direction} order of {column!r}"
    agreeing, pairs = _agreeing_pairs(user, item)
    if _is_no_chance(agreeing, pairs, 2.0 ** (1 - _TOGETHER)):
        return f"of {pairs:,} pairs of items {agreeing:,} stand in the same order for every user"
    return ""


def _keys(cleaned: Cleaned, plan: Plan) -> Iterator[tuple[str, Floats, bool]]:
    """Columns that rows may be sorted by, as numbers in their order, and whether both directions count."""
    data, item = plan.data, _numbers(cleaned.item_texts)
    rank = cleaned.item_texts.rank("dense").to_numpy().astype(np.float64) if item is None else item
    yield data.item, rank[cleaned.item], True
    for column in cleaned.frame.columns:
        numbers = None if column in (data.user, data.item, data.event) else _numbers(cleaned.frame[column])
        if numbers is not None:
            yield column, numbers, column == data.value


def _numbers(column: pl.Series) -> Floats | None:
    """A column as numbers, NaN where missing; None where it holds something else."""
    if column.dtype.is_nested():
        return None
    numbers = column.cast(pl.Float64, strict=False)
    return numbers.to_numpy() if numbers.null_count() == column.null_count() else None


def _met_before(user: Ints, item: Ints) -> npt.NDArray[np.bool_]:
    """(N,) bool: whether an item's first row is another user's."""
    _, first, code = np.unique(item, return_index=True, return_inverse=True)
    met: npt.NDArray[np.bool_] = user[first][code] != user
    return met


def _sorted_users(user: Ints, key: Floats) -> tuple[int, int]:
    """Users whose keys never fall, of those for whom that is by chance at most _LEAST."""
    if not len(user):
        return 0, 0
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, len(user) + 1)))])
    grouped = np.argsort(user, kind="stable")
    owner, value = user[grouped], key[grouped]
    falls = np.bincount(
        owner[1:][(owner[1:] == owner[:-1]) & (value[1:] < value[:-1])], minlength=owner[-1] + 1
    )
    ordered = np.lexsort((key, user))
    changes = (np.diff(user[ordered]) != 0) | (np.diff(key[ordered]) != 0)
    starts = np.concatenate([[0], 1 + np.flatnonzero(changes)])
    alike = factorial[np.diff(np.append(starts, len(user)))]  # orders of equal keys, which are sorted, too
    chance = np.bincount(user[ordered][starts], alike) - factorial[np.bincount(user)]
    counted = chance < math.log(_LEAST) + 1e-9
    return int((counted & (falls == 0)).sum()), int(counted.sum())


def _agreeing_pairs(user: Ints, item: Ints) -> tuple[int, int]:
    """Pairs of frequent items that _TOGETHER users have in the same order, and how many were compared."""
    counts = np.bincount(item)
    frequent = np.argsort(-counts, kind="stable")[:_ITEMS]
    number = np.full(len(counts), -1)
    number[frequent] = np.arange(len(frequent))
    rows = np.flatnonzero(number[item] >= 0)
    _, owner = np.unique(user[rows], return_inverse=True)
    rows, owner = rows[owner < _USERS][::-1], owner[owner < _USERS][::-1]  # the first row is written last
    position = np.full((int(owner.max(initial=-1)) + 1, len(frequent)), -1, np.int32)
    position[owner, number[item[rows]]] = rows
    met = position >= 0
    together = met.T.astype(np.float32) @ met.astype(np.float32)
    first, second = np.triu_indices(len(frequent), 1)
    free, agreeing, pairs = np.ones(len(met), bool), 0, 0
    # In a random order: items that belong together, as episodes do, are the pairs that most users met.
    for pair in np.random.default_rng(0).permutation(np.flatnonzero(together[first, second] >= _TOGETHER)):
        a, b = first[pair], second[pair]
        users = np.flatnonzero(met[:, a] & met[:, b] & free)[:_TOGETHER]
        if len(users) == _TOGETHER:
            free[users] = False
            before = position[users, a] < position[users, b]
            agreeing, pairs = agreeing + int(before.all() or not before.any()), pairs + 1
    return agreeing, pairs


def _is_no_chance(cases: int, of: int, chance: float) -> bool:
    """Whether more than half are so, which by chance has a probability below _ERROR."""
    divergence = 0.5 * math.log(0.5 / chance) + 0.5 * math.log(0.5 / (1 - chance))
    return 2 * cases > of and of * divergence > -math.log(_ERROR)
