"""Experiments: which user was served which version, and whether outcomes differ.

Who was served lies in a file of its own beside the feedback log, so that users without any
feedback count, too.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import msgspec

from app.errors import MachineError
from app.stores.schema import FILE as FEEDBACK

FILE = "served.sqlite"
REMEMBERED = 100_000  # users in memory; of more, some are written twice, which changes nothing
WAITING = 100_000  # users that wait to be written; further ones are noted with a later request
FILE_BYTES = 1 << 30  # some 10 million users; further ones take no part in the experiment
BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS served (
    salt TEXT, user TEXT, variant TEXT, time REAL, PRIMARY KEY (salt, user, variant)
) WITHOUT ROWID
"""
# Per user: how many events, from the start of the experiment on, under the version that served them.
_OUTCOMES = """
SELECT served.variant, COUNT(events.id) FROM served LEFT JOIN feedback.events AS events
ON events.user = served.user AND events.variant = served.variant AND events.time >= ?
AND (? = '' OR events.event = ?) WHERE served.salt = ? GROUP BY served.user, served.variant
"""
_log = logging.getLogger("ray.serve")


class Exposures:
    """Which users were served which version of an experiment.

    `note` is for one event loop, `flush` for one thread at a time.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._seen: set[tuple[str, str, str]] = set()
        self._waiting: list[tuple[str, str, str]] = []
        self._is_full = False

    def note(self, salt: str, user: str, variant: str) -> None:
        """Note that a user was served by a version."""
        entry = (salt, user, variant)
        if entry in self._seen or len(self._waiting) >= WAITING:
            return
        if len(self._seen) >= REMEMBERED:
            self._seen = set()
        self._seen.add(entry)
        self._waiting.append(entry)

    def flush(self) -> None:
        """Write what is new. What could not be written stays for the next call.

        Raises:
            MachineError: the file cannot be written.
        """
        entries = self._waiting[:]
        if not entries:
            return
        with _database(self.path) as connection:
            if _used_bytes(connection) < FILE_BYTES:
                rows = [(*entry, time.time()) for entry in entries]
                connection.executemany("INSERT OR IGNORE INTO served VALUES (?, ?, ?, ?)", rows)
            elif not self._is_full:
                self._is_full = True
                _log.warning("%s holds %d bytes: further users are not counted", self.path, FILE_BYTES)
        del self._waiting[: len(entries)]


def remove_other_experiments(folder: Path, salt: str) -> None:
    """Remove what is stored of all experiments but one, so that the file does not grow with each.

    Raises:
        MachineError: the file cannot be written.
    """
    if (folder / FILE).exists():
        with _database(folder / FILE) as connection:
            connection.execute("DELETE FROM served WHERE salt <> ?", (salt,))


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """The file of exposures in one transaction, which is undone when the block raises."""
    try:
        connection = sqlite3.connect(path, timeout=BUSY_S)
        try:
            with connection:
                connection.execute(_SCHEMA)
                yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise MachineError(
            f"it cannot be stored who was served ({error})",
            where=str(path),
            remedy="free some space; remove the file if it is damaged",
        ) from error


def _used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold rows, without pages that were freed."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


class Arm(msgspec.Struct, frozen=True):
    """One version of an experiment: users served, and outcomes per user."""

    variant: str
    users: int
    outcomes: int
    rate: float


@dataclass(frozen=True)
class Difference:
    """Of the second version's outcomes per user from the first one's, with its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def decides(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.low <= 0 <= self.high


def difference(first: Sequence[int], second: Sequence[int], level: float = 0.95) -> Difference:
    """Difference of the means of outcomes per user.

    The interval is Welch's by normal approximation over users (Welch 1947): users are
    independent, the events of one user are not. It takes some dozens of users a version.
    """
    (mean, spread), (other, other_spread) = (_moments(counts) for counts in (first, second))
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(spread + other_spread)
    return Difference(other - mean, other - mean - half, other - mean + half)


def _moments(values: Sequence[int]) -> tuple[float, float]:
    """Mean, and variance of the mean."""
    count = len(values)
    if count < 2:
        return (float(values[0]) if values else 0.0), math.inf
    mean = sum(values) / count
    return mean, sum((value - mean) ** 2 for value in values) / (count - 1) / count


def outcomes(folder: Path, salt: str, started: float, event: str = "") -> dict[str, list[int]]:
    """Outcomes of each user served, by version.

    Args:
        folder: of the store.
        salt, started: of the experiment.
        event: type of the events that count; empty: all.

    Raises:
        MachineError: the files cannot be read.
    """
    counts: dict[str, list[int]] = {}
    if not (folder / FILE).exists():
        return counts
    if not (folder / FEEDBACK).exists():
        raise MachineError(
            "there is no feedback log of SQLite to count outcomes in",
            where=str(folder / FEEDBACK),
            remedy="count them where serve.store keeps the events, by their variant",
        )
    try:
        connection = sqlite3.connect(folder / FILE, timeout=BUSY_S)
        try:
            connection.execute("ATTACH ? AS feedback", (str(folder / FEEDBACK),))
            rows = connection.execute(_OUTCOMES, (round(started * 1e6), event, event, salt))
            for variant, count in rows:
                counts.setdefault(variant, []).append(count)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise MachineError(
            f"the experiment cannot be read ({error})", where=str(folder), remedy="is this the store?"
        ) from error
    return counts


def arm(variant: str, counts: Sequence[int]) -> Arm:
    """One version with its outcomes per user added up."""
    return Arm(variant, len(counts), sum(counts), sum(counts) / len(counts) if counts else 0.0)
