"""Experiments: which user met which version, and whether outcomes differ.

Who was served lies in a file of its own beside the feedback log, so that users without any
feedback count, too.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import msgspec

from app.errors import MachineError
from app.stores.sqlite_store import FILE as FEEDBACK

FILE = "served.sqlite"
REMEMBERED = 100_000  # users in memory; of more, some are written twice, which changes nothing
BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS served (
    salt TEXT, user TEXT, variant TEXT, time REAL, PRIMARY KEY (salt, user, variant)
) WITHOUT ROWID
"""
# Per user: how many events, from the start of the experiment on, under the version they met.
_OUTCOMES = """
SELECT served.variant, COUNT(events.id) FROM served LEFT JOIN feedback.events AS events
ON events.user = served.user AND events.variant = served.variant AND events.time >= ?
AND (? = '' OR events.event = ?) WHERE served.salt = ? GROUP BY served.user, served.variant
"""


class Exposures:
    """Remembers who was served what. `note` on the event loop, `flush` in any thread.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._seen: set[tuple[str, str, str]] = set()
        self._new: list[tuple[str, str, str]] = []

    def note(self, salt: str, user: str, variant: str) -> None:
        """A user was served by a version."""
        entry = (salt, user, variant)
        if entry not in self._seen:
            if len(self._seen) >= REMEMBERED:
                self._seen = set()
            self._seen.add(entry)
            self._new.append(entry)

    def flush(self) -> None:
        """Write what is new.

        Raises:
            MachineError: the file cannot be written.
        """
        entries, self._new = self._new, []
        if not entries:
            return
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_S)
            try:
                with connection:
                    connection.execute(_SCHEMA)
                    rows = [(*entry, time.time()) for entry in entries]
                    connection.executemany("INSERT OR IGNORE INTO served VALUES (?, ?, ?, ?)", rows)
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise MachineError(
                f"who was served cannot be written ({error})", where=str(self.path), remedy="free some space"
            ) from error


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
    (mean, spread), (other, other_spread) = (_moments(one) for one in (first, second))
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
    found: dict[str, list[int]] = {}
    if not (folder / FILE).exists():
        return found
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
                found.setdefault(variant, []).append(count)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise MachineError(
            f"the experiment cannot be read ({error})", where=str(folder), remedy="is this the store?"
        ) from error
    return found


def arm(variant: str, counts: Sequence[int]) -> Arm:
    """What there is to say of a version by its outcomes per user."""
    return Arm(variant, len(counts), sum(counts), sum(counts) / len(counts) if counts else 0.0)
