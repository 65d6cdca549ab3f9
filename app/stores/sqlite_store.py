"""The event log and the recent history of a user.

SQLite in WAL mode, one file that all replicas of a machine share. `append` returns once the
events are on disk, so an event that was acknowledged survives the death of the process and
of the machine.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from sys import intern  # the same ids and types come again and again, and are kept

from app.errors import MachineError
from app.events import Event, HistoryEvent, microseconds

FILE = "feedback.sqlite"
BUSY_S = 5.0
CACHE_KIB = 256  # of pages in each connection, instead of 2 MiB that fill as the log grows
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    user TEXT NOT NULL,
    item TEXT NOT NULL,
    event TEXT NOT NULL,
    time INTEGER NOT NULL,  -- microseconds since the epoch
    value REAL,
    variant TEXT NOT NULL DEFAULT ''  -- the version of the model that the user met
);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user, time, id);
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY,
    content BLOB NOT NULL,
    place INTEGER NOT NULL  -- in the order of arrival
);
CREATE INDEX IF NOT EXISTS items_by_place ON items (place);
"""


class SqliteStore:
    """A Store in one SQLite file.

    Args:
        folder: where the file lies; made if absent.

    Raises:
        MachineError: the folder is not writable or the file is not a database.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._translate(error) from error
        # Readers and writers of WAL do not block each other, so each has a connection.
        self._writer, self._reader = self._connect(), self._connect()
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._version = -1  # of the database, as the reader last saw it
        self._items_seen = (-2, -2)  # the version when it last looked for items, and the mark then

    def append(self, events: Sequence[Event]) -> None:
        """See Store."""
        now = round(time.time() * 1e6)
        rows = [
            (
                e.user,
                e.item,
                e.event,
                now if e.timestamp is None else microseconds(e.timestamp),
                e.value,
                e.variant,
            )
            for e in events
        ]
        try:
            with self._writing, self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.executemany(
                    "INSERT INTO events (user, item, event, time, value, variant) VALUES (?, ?, ?, ?, ?, ?)",
                    rows,
                )
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def recent(self, user: str, limit: int) -> list[HistoryEvent]:
        """See Store."""
        try:
            with self._reading:
                rows = self._reader.execute(
                    "SELECT item, event, time FROM events WHERE user = ? ORDER BY time DESC, id DESC LIMIT ?",
                    (user, limit),
                ).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error) from error
        return [HistoryEvent(intern(item), intern(event), when / 1e6) for item, event, when in reversed(rows)]

    def changes(self, mark: int | None) -> tuple[int, list[str]]:
        """See Store."""
        try:
            with self._reading:
                version = self._reader.execute("PRAGMA data_version").fetchone()[0]
                if version == self._version and mark is not None:
                    return mark, []
                self._version = version
                if mark is None:
                    return self._reader.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0], []
                rows = self._reader.execute("SELECT id, user FROM events WHERE id > ?", (mark,)).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error) from error
        return max((row[0] for row in rows), default=mark), list({row[1] for row in rows})

    def put_item(self, item: str, content: bytes) -> None:
        """See Store."""
        try:
            with self._writing, self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.execute(
                    "INSERT INTO items SELECT ?, ?, 1 + COALESCE(MAX(place), 0) FROM items WHERE true "
                    "ON CONFLICT (id) DO UPDATE SET content = excluded.content, place = excluded.place",
                    (item, content),
                )
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def items(self, mark: int | None) -> tuple[int, list[tuple[str, bytes]]]:
        """See Store."""
        if mark is not None and (self._version, mark) == self._items_seen:
            return mark, []
        try:
            with self._reading:
                version = self._version
                rows = self._reader.execute(
                    "SELECT place, id, content FROM items WHERE place > ? ORDER BY place", (mark or 0,)
                ).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error) from error
        last: int = rows[-1][0] if rows else mark or 0
        self._items_seen = (version, last)
        return last, [(item, content) for _, item, content in rows]

    def close(self) -> None:
        """See Store."""
        self._reader.close()
        self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        connection = None
        try:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a commit waits for the disk
            connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")  # beside the system's own, of the file
            connection.executescript(_SCHEMA)
            _migrate(connection)
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise self._translate(error) from error
        return connection

    def _translate(self, error: sqlite3.Error | OSError) -> MachineError:
        return MachineError(
            f"the feedback log cannot be used ({error})",
            where=str(self.path),
            remedy="free some space, or point serve.store at a folder you may write to",
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Add what files of older versions lack."""
    columns = {row[1] for row in connection.execute("PRAGMA table_info(events)")}
    if "variant" not in columns:
        try:
            connection.execute("ALTER TABLE events ADD COLUMN variant TEXT NOT NULL DEFAULT ''")
        except sqlite3.OperationalError as error:
            if "duplicate column" not in str(error):  # else another replica was quicker
                raise
