"""What is known of a generated shop: how its rows must be counted, and the best ranking of its test part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from app.data.dataset import Dataset
from app.data.demo_shop.world import World
from app.errors import DataError

Array = npt.NDArray[Any]
START = 1_704_067_200  # seconds since the epoch, 2024-01-01 UTC: the log begins
K = 10
BLOCK = 1 << 23  # weights in memory at a time


class Truth(msgspec.Struct, frozen=True):
    """The counts that preparing the shop by its own recipe must give, exactly."""

    users: int
    items: int
    seed: int
    rows_in: int
    rows_kept: int
    rejected: dict[str, int]  # reason -> rows, each under its first reason

    def save(self, folder: Path) -> None:
        """Write the counts as `truth.json` in a folder."""
        (folder / "truth.json").write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """Read `truth.json` of a generated shop.

        Raises:
            DataError: there is none, or it is damaged.
        """
        try:
            return msgspec.json.decode((folder / "truth.json").read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise DataError(
                f"no truth of a generated shop ({error})", where=str(folder), remedy="generate the shop again"
            ) from error


class Walks:
    """Who met what and when, without the dirt: rows of user u are indptr[u]:indptr[u + 1].

    `item` (N,) int32 and `time` (N,) int32 (seconds since START), rising within a user.
    """

    def __init__(self, folder: Path) -> None:
        self.indptr = np.load(folder / "indptr.npy", mmap_mode="r")
        self.item = np.load(folder / "item.npy", mmap_mode="r")
        self.time = np.load(folder / "time.npy", mmap_mode="r")

    def row(self, users: Array, time: Array) -> Array:
        """Rows (B,) of the events of `users` at `time`, which must exist."""
        row = np.array(
            [
                start + np.searchsorted(self.time[start:end], moment)
                for start, end, moment in zip(self.indptr[users], self.indptr[users + 1], time, strict=True)
            ],
            np.int64,
        )
        if not np.array_equal(self.time[np.minimum(row, len(self.time) - 1)], time):
            raise DataError("the data set is not of this shop", remedy="prepare the shop's own events.csv")
        return row


def attainable(folder: Path, dataset: Dataset) -> float:
    """The best NDCG@10 that any model could reach on the test part, ranking all unseen items.

    Items are ranked by their true probability as the user's next item, given all that was
    before the user's first test event: by the linearity of DCG no ranking does better in
    expectation where a user has one test event (split leave_last); where there are several
    it is the best ranking for the first.

    Args:
        folder: where `generate` wrote the shop.
        dataset: the shop, prepared. Items that its training part lacks cannot be ranked.

    Returns:
        Mean NDCG@10 over the users with a positive test event; equal weights share their ranks.

    Raises:
        DataError: the folder holds no shop, or the data set is of another one.
    """
    return ranked_by(folder, dataset, lambda weights: weights)


def ranked_by(folder: Path, dataset: Dataset, change: Callable[[Array], Array]) -> float:
    """As `attainable`, ranking by `change(weights)` instead: (B, I) true weights -> (B, I) scores."""
    Truth.load(folder)
    world, walks = World.load(folder / "truth"), Walks(folder / "truth")
    rankable = np.zeros(len(world.item_number), bool)
    position = _positions(world.item_number)
    rankable[position[_numbers(dataset.items, "i")[1:]]] = True
    users, time, relevant = _targets(dataset, position)
    gains = []
    step = max(1, BLOCK // len(rankable))
    for start in range(0, len(users), step):
        block = slice(start, start + step)
        rows = walks.row(users[block], time[block])
        met = _met(walks, users[block], rows, len(rankable))
        previous = np.where(rows > walks.indptr[users[block]], walks.item[np.maximum(rows - 1, 0)], -1)
        scores = change(world.weights(users[block], time[block], previous))
        scores[met | ~rankable] = -np.inf
        gains.append(_ndcg(scores, relevant[block]))
    return float(np.concatenate(gains).mean()) if gains else 0.0


def _targets(dataset: Dataset, position: Array) -> tuple[Array, Array, list[Array]]:
    """Users with a positive test event, when their first one was, and the items of all of them.

    Users whose taste was not planted (passers-by, unknown ones) are left out.
    """
    test, planted = dataset.test, _numbers(dataset.users, "u")
    rows = np.flatnonzero((np.asarray(test.label) > 0) & (planted[test.user] > 0))
    user, item = planted[test.user[rows]] - 1, _numbers(dataset.items, "i")[test.item[rows]]
    first = np.flatnonzero(np.append(True, user[1:] != user[:-1])) if len(rows) else rows
    time = np.asarray(test.time)[rows[first]] // 1_000_000 - START
    return user[first], time, np.split(np.where(item > 0, position[item], -1), first[1:])


def _numbers(ids: Iterable[str], letter: str) -> Array:
    """The numbers in ids such as u000017; 0 for those that begin otherwise."""
    return np.array([int(name[1:]) if name.startswith(letter) else 0 for name in ids], np.int64)


def _positions(item_number: Array) -> Array:
    position = np.zeros(len(item_number) + 1, np.int64)
    position[item_number] = np.arange(len(item_number))
    return position


def _met(walks: Walks, users: Array, rows: Array, items: int) -> Array:
    """(B, I) whether the user met the item before `rows`."""
    met = np.zeros((len(users), items), bool)
    for line, (user, row) in enumerate(zip(users, rows, strict=True)):
        met[line, walks.item[walks.indptr[user] : row]] = True
    return met


def _ndcg(scores: Array, relevant: list[Array]) -> Array:
    """NDCG@K (B,) of rankings by score; -1 in `relevant` is an item that cannot be ranked."""
    discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, K + 2)))])
    gains = np.zeros(len(scores))
    for line, items in enumerate(relevant):
        for item in items[items >= 0]:
            mine = scores[line, item]
            if mine > -np.inf:
                above, upto = (scores[line] > mine).sum(), (scores[line] >= mine).sum()
                ranks = discount[min(upto, K)] - discount[min(above, K)]
                gains[line] += ranks / (upto - above)
        gains[line] /= discount[min(len(items), K)]
    return gains
